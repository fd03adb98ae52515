"""Hidden-subclass recovery: does the atlas find what nobody told it?

Known classes are merged into pairs, the network learns the pairs alone, and then neighbours and clusters are compared
with the classes that were merged. Clusters that are more than the classes prove nothing by themselves; this does.

Axes: N images, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN, KMeans
from sklearn.metrics import adjusted_mutual_info_score

from damage_atlas.cluster.density import dbscan_clusters, find_clusters
from damage_atlas.cluster.near import find_neighbours
from damage_atlas.cluster.radius import find_knee
from damage_atlas.cluster.tsne import make_map
from damage_atlas.errors import InputError
from damage_atlas.experiments.log import MeasurementLog, Row, deciding, interval
from damage_atlas.metrics import agreement, knn_accuracy
from damage_atlas.network import best_device
from damage_atlas.spec import PAPER_EPS, ClusterSpec, Settings, TrainSpec, with_overrides
from damage_atlas.train.data import LabelledImages, Pixels
from damage_atlas.train.evaluate import embed_rows
from damage_atlas.train.loop import Alone, Trainer, TrainingState, make_optimizer
from damage_atlas.train.start import new_network

Floats = NDArray[np.float32]
Pairing = tuple[tuple[str, ...], ...]

_AMI_IMAGES = 3000  # of a class: expected mutual information takes time with the square of what is counted
_SHUFFLE_SEED = 0  # of the order of the pairings: the first few are then no alphabetical ones

# What is compared by default, each on top of the settings that were given; the first one is what the others are
# compared with.
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "instance": ("train.instance_weight=1",),
    "crops": ("train.crop_side=0.65", "train.shift=0.075"),
    "crops + instance": ("train.crop_side=0.65", "train.shift=0.075", "train.instance_weight=1"),
}


def parse_variant(text: str) -> tuple[str, tuple[str, ...]]:
    """A name of ``VARIANTS``, or ``NAME: section.key=value section.key=value``.

    Raises:
        InputError: a name that is not known, without settings.
    """
    name, colon, assignments = (part.strip() for part in text.partition(":"))
    if colon:
        return name, tuple(assignments.split())
    if name not in VARIANTS:
        raise InputError(
            f"variant {name!r} is not known; {', '.join(VARIANTS)} are. One of your own is written "
            f"'{name}: train.instance_weight=0.5'."
        )
    return name, VARIANTS[name]


def pairings(classes: Sequence[str]) -> list[Pairing]:
    """All ways to merge ``classes`` into pairs, in a fixed, shuffled order: 15 for six classes.

    Raises:
        InputError: an odd number of classes, or fewer than four: two pairs are the least that can be told apart.
    """
    if len(classes) < 4 or len(classes) % 2:
        raise InputError(
            f"merging into pairs needs an even number of classes, at least four; there are {len(classes)}: "
            f"{', '.join(classes)}. Leave one out."
        )
    found = list(_pairings(tuple(sorted(classes))))
    return [found[i] for i in np.random.default_rng(_SHUFFLE_SEED).permutation(len(found))]


def _pairings(classes: tuple[str, ...]) -> Iterator[Pairing]:
    if not classes:
        yield ()
        return
    first, *others = classes
    for other in others:
        rest = tuple(name for name in others if name != other)
        for more in _pairings(rest):
            yield ((first, other), *more)


def parse_merges(texts: Sequence[str], classes: Sequence[str]) -> Pairing:
    """A merging of one's own: classes with commas between them, a text for each group; what none names stays alone.

    Raises:
        InputError: a class that is not there or is named twice, or a merging that leaves one class.
    """
    groups = [tuple(name.strip() for name in text.split(",") if name.strip()) for text in texts]
    named = [name for group in groups for name in group]
    for name in named:
        if name not in classes or named.count(name) > 1:
            why = "named twice" if name in classes else f"no class; {', '.join(classes)} are"
            raise InputError(f"--merge: {name!r} is {why}.")
    merged = (*groups, *((name,) for name in classes if name not in named))
    if len(merged) < 2:
        raise InputError("--merge leaves one class, and a network needs two to learn from.")
    return merged


def merge(images: LabelledImages, pairing: Pairing) -> LabelledImages:
    """The same images under the names of the pairs, or of whatever was merged."""
    name_of = {fine: " or ".join(pair) for pair in pairing for fine in pair}
    return replace(images, labels=[name_of[label] for label in images.labels])


@dataclass(frozen=True)
class Plan:
    """What is measured: every variant on every pairing with every seed.

    Args:
        settings: of training and clustering, which all variants share.
        variants: assignments on top of them, by name; the first is compared with the others.
        pairings: of the fine classes.
        seeds: of weights, batches, augmentation, and of the map.
    """

    settings: Settings
    variants: Mapping[str, Sequence[str]]
    pairings: Sequence[Pairing]
    seeds: Sequence[int]

    def settings_of(self, variant: str, seed: int) -> Settings:
        """The settings of one training.

        Raises:
            SpecError: an assignment that is none.
        """
        seeded = (f"train.seed={seed}", f"cluster.seed={seed}")
        return with_overrides(self.settings, [*self.variants[variant], *seeded], f"variant {variant}")


def recover_subclasses(
    images: LabelledImages,
    pixels: Pixels,
    plan: Plan,
    file: Path,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Measure what is not yet in ``file``, and return the rows of the whole plan.

    All variants of a pairing come before the next pairing, so that a stopped experiment can be compared already.

    Args:
        images: with their fine labels, and a split of which the held-out part is looked at once, here.
        pixels: theirs.
        on_row: called with each row.
    """
    log, rows = MeasurementLog(file), []
    for variant in plan.variants:
        plan.settings_of(variant, 0)  # so that the last one's mistake is not found after hours
    for seed in plan.seeds:
        for pairing in plan.pairings:
            for variant in plan.variants:
                settings = plan.settings_of(variant, seed)
                decides = {
                    "images": images.image_ids,
                    "labels": images.labels,
                    "splits": images.splits,
                    "pairing": pairing,
                    "train": deciding(settings.train),
                    "cluster": settings.cluster.model_dump(mode="json", exclude={"resamples_kept"}),
                }
                names = {"variant": variant, "pairing": [list(pair) for pair in pairing], "seed": seed}

                def measure(pairing: Pairing = pairing, settings: Settings = settings) -> Row:
                    coarse = merge(images, pairing)
                    vectors = train_vectors(coarse, pixels, settings.train)
                    return subclass_scores(images, coarse, vectors, settings.cluster)

                rows.append(log.measured(decides, names, measure))
                on_row(rows[-1])
    return rows


def train_network(
    images: LabelledImages, pixels: Pixels, spec: TrainSpec, device: torch.device | str = "cpu"
) -> TrainingState:
    """A network that has learnt the labels of the training split, in evaluation mode, and how it went."""
    network = new_network(spec).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = TrainingState(network, make_optimizer(network, spec))
    trainer = Trainer(state, pixels, images.training_rows, images.training_codes, spec, Alone(), images.label_sets)
    trainer.run(spec.iterations, lambda _: None)
    network.eval()
    return state


def train_vectors(images: LabelledImages, pixels: Pixels, spec: TrainSpec) -> Floats:
    """Vectors of all images by a network that has learnt the labels of the training split: N x D."""
    network = train_network(images, pixels, spec, best_device()).network
    return embed_rows(network, pixels, np.arange(len(images)), spec)


def subclass_scores(fine: LabelledImages, coarse: LabelledImages, vectors_ND: Floats, spec: ClusterSpec) -> Row:
    """How well the vectors tell the coarse classes, which were taught, and the fine ones, which were not.

    kNN is from training to held-out images. The clusters are of all images: on the map as the cluster stage finds them,
    at the paper's eps of 3, by DBSCAN in the embedding itself, and by k-means there, which is told how many there are.
    ``within_ami_subtype`` is the adjusted mutual information of the map's clusters with the fine classes inside each
    coarse one, ``within_ami_group`` that with the groups of the split (photos): where it is the higher one, what was
    found is background. The latter is left out where each image is a group of its own.
    """
    train, test = fine.training_rows, fine.rows_of("test")

    def knn(images: LabelledImages) -> float:
        labels = np.array(images.labels)
        return knn_accuracy(vectors_ND[train], labels[train].tolist(), vectors_ND[test], labels[test].tolist())

    k = int(3 * spec.perplexity)
    positions = make_map(vectors_ND, find_neighbours(vectors_ND, k), spec)
    found = find_clusters(positions, vectors_ND, spec)
    at_paper_eps = dbscan_clusters(positions, PAPER_EPS, spec.min_neighbours)
    in_embedding = DBSCAN(eps=find_knee(vectors_ND, spec.min_neighbours), min_samples=spec.min_neighbours)
    by_k_means = KMeans(len(set(fine.labels)), n_init=10, random_state=spec.seed).fit_predict(vectors_ND)
    on_map = agreement(fine.labels, found.labels_N.tolist())
    within = {"within_ami_subtype": _within(coarse.labels, fine.labels, found.labels_N)}
    if len(set(fine.groups)) < len(fine.groups):
        within["within_ami_group"] = _within(coarse.labels, fine.groups, found.labels_N)
    return {
        **within,
        "coarse_knn": knn(coarse),
        "fine_knn": knn(fine),
        "fine_ari": on_map["ari"],
        "fine_nmi": on_map["nmi"],
        "clusters": int(found.labels_N.max()) + 1,
        "noise_share": float((found.labels_N < 0).mean()),
        "fine_ari_eps_3": agreement(fine.labels, at_paper_eps.labels_N.tolist())["ari"],
        "fine_ari_dbscan_in_embedding": agreement(fine.labels, in_embedding.fit_predict(vectors_ND).tolist())["ari"],
        "fine_ari_k_means": agreement(fine.labels, by_k_means.tolist())["ari"],
        "fine_ari_of_the_coarse_classes": agreement(fine.labels, coarse.labels)["ari"],
    }


def _within(coarse_N: Sequence[str], told_N: Sequence[str], clusters_N: NDArray[np.int64]) -> float:
    """Mean over coarse classes, each by its images, of the information that clusters share with what is told.

    A coarse class of which one thing is told has nothing to be found, and is left out; 0 where all are.
    """
    coarse, told = np.array(coarse_N), np.array(told_N)
    total = counted = 0.0
    for name in np.unique(coarse):
        rows = np.flatnonzero(coarse == name)
        if len(np.unique(told[rows])) < 2:
            continue
        drawn = np.random.default_rng(0).permutation(rows)[:_AMI_IMAGES]
        total += len(rows) * float(adjusted_mutual_info_score(told[drawn], clusters_N[drawn]))
        counted += len(rows)
    return total / max(counted, 1.0)


def summarise(rows: Sequence[Row], names: Sequence[str], scores: Sequence[str], by: str = "variant") -> list[Row]:
    """A row for each of ``names``: each score's mean and half the 95% interval, and those of its gain.

    The gain is over the first name, in pairs of equal pairing and seed. Seeds of one pairing are no independent trials:
    where there are several pairings, the intervals are over these, each with the mean of its seeds.
    """

    def place(row: Row) -> str:
        return str((row.get("pairing"), row["seed"]))

    first, table = {place(row): row for row in rows if row[by] == names[0]}, []
    for name in names:
        mine = [row for row in rows if row[by] == name]
        diverged = sum("refused" in row for row in mine)
        summary: Row = {by: name, "runs": len(mine) if not diverged else f"{len(mine)}, of which {diverged} diverged"}
        for score in scores:
            there = [row for row in mine if score in row]
            if not there:
                continue
            summary[score] = interval(_by_pairing(there, [row[score] for row in there]))
            paired = [row for row in there if score in first.get(place(row), {})]
            if name != names[0] and paired:
                gains = [row[score] - first[place(row)][score] for row in paired]
                summary[f"{score}_gain"] = interval(_by_pairing(paired, gains))
        table.append(summary)
    return table


def _by_pairing(rows: Sequence[Row], values: Sequence[float]) -> list[float]:
    of_pairing: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        of_pairing.setdefault(str(row.get("pairing")), []).append(value)
    return [float(np.mean(each)) for each in of_pairing.values()] if len(of_pairing) > 1 else list(values)

"""Ablations: one setting after another is varied around the given ones, as in section 3.1 of the paper.

A plan is a list of trials; each is a training whose row is an object of the store, named by all that decides it. So a
sweep goes on where it was stopped, several machines may share one, and what two axes have in common is measured once.

Settings are chosen by these rows, so they are scored on a validation part of the training split: the held-out images
are looked at once, by the model that is trained with what was chosen.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from damage_atlas.errors import InputError, ObjectExistsError
from damage_atlas.experiments.data import with_validation
from damage_atlas.experiments.log import Row, interval
from damage_atlas.experiments.subclasses import train_vectors
from damage_atlas.images import Limits
from damage_atlas.network import best_device, resolve_precision
from damage_atlas.spec import Settings, TrainSpec, with_overrides
from damage_atlas.store import Run, Store
from damage_atlas.train import labelled_images
from damage_atlas.train.data import LabelledImages, Pixels
from damage_atlas.train.evaluate import held_out_scores
from damage_atlas.train.loop import make_batches

# The paper's grids, whose values it leaves out, and the forms of loss and sampler.
GRIDS: dict[str, tuple[str, ...]] = {
    "input_size": ("128", "144", "160", "180", "200"),
    "embedding_size": ("8", "16", "32"),
    "temperature": ("0.1", "0.2", "0.3", "0.5"),
    "positive_weight": ("0.1", "0.15", "0.2", "0.3"),
    "loss": ("mn_pair", "n_pair", "supcon", "mean_of_logs"),
    "sampler": ("balanced", "tuples"),
}
SCORES = ("knn_accuracy", "linear_accuracy", "map_at_r", "images_per_s")


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        key: a digest of all that decides its scores.
        places: which values of which axes it stands for: several where it is the one that all axes go through.
    """

    key: str
    train: TrainSpec
    places: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """What it varies."""
        return f"{', '.join(f'{axis} {value}' for axis, value in self.places)}; seed {self.train.seed}"


def parse_axis(text: str) -> tuple[str, tuple[str, ...]]:
    """A name of ``GRIDS``, or ``KEY=VALUE,VALUE`` with a setting of ``train``.

    Raises:
        InputError: a name that is not known, without values.
    """
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("train.")
    if equals:
        return name, tuple(value.strip() for value in values.split(",") if value.strip())
    if name not in GRIDS:
        raise InputError(f"axis {name!r} is not known; {', '.join(GRIDS)} are. One of your own is written {name}=1,2.")
    return name, GRIDS[name]


def plan_sweep(
    images: LabelledImages, settings: Settings, axes: Mapping[str, Sequence[str]], seeds: Iterable[int]
) -> list[Trial]:
    """The trials, each once, the ones that most axes go through first.

    Raises:
        SpecError: a value that its setting cannot have.
        InputError: a value that these images cannot be trained with.
    """
    inner = with_validation(images, settings.train.seed)
    found: dict[str, Trial] = {}
    for seed in seeds:
        for axis, values in axes.items():
            for value in values:
                train = with_overrides(settings, [f"train.{axis}={value}", f"train.seed={seed}"], f"axis {axis}").train
                make_batches(inner.training_codes, inner.label_sets, train)
                key = _key(inner, train)
                places = found[key].places if key in found else ()
                found[key] = Trial(key, train, (*places, (axis, value)))
    return sorted(found.values(), key=lambda trial: -len(trial.places))


def _key(images: LabelledImages, train: TrainSpec) -> str:
    decides = {
        "images": images.image_ids,
        "labels": images.labels,
        "splits": images.splits,
        # How it is computed: bits, and speeds, but not how often somebody looks.
        "train": train.model_dump(mode="json", exclude={"checkpoint_every", "evaluate_every", "workers", "promote"}),
        "precision": str(resolve_precision(train.precision, best_device())),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]


def measure_trial(run: Run, trial: Trial) -> Row:
    """Train and score, unless another has; the row is in the store afterwards.

    A training that ends in an error of ours, as one that diverged, has a row with its message, ``refused``.

    Args:
        run: whose catalog has the images.
    """
    if (known := read_row(run.store, trial)) is not None:
        return known
    images = labelled_images(run)
    inner = with_validation(images, run.spec.settings.train.seed)
    limits = Limits.of(run.spec.settings.catalog)
    row: Row = {"key": trial.key}
    with Pixels(inner, run.spec.images, trial.train.input_size, limits) as pixels:
        pixels[inner.training_rows]  # decoded beforehand: what is timed is training
        started = time.monotonic()
        try:
            vectors = train_vectors(inner, pixels, trial.train)
        except InputError as error:
            row["refused"] = error.message
        else:
            seconds = time.monotonic() - started
            rate = trial.train.iterations * trial.train.batch_size / seconds
            row |= {**held_out_scores(inner, vectors), "seconds": seconds, "images_per_s": rate}
    with suppress(ObjectExistsError):  # another worker was as fast; its bits are the same
        run.store.create(_place(trial), json.dumps(row).encode())
    return row


def read_row(store: Store, trial: Trial) -> Row | None:
    """The trial's row; None while nobody has measured it."""
    if not store.exists(_place(trial)):
        return None
    row: Row = json.loads(store.read(_place(trial)))
    return row


def _place(trial: Trial) -> str:
    return f"experiments/sweep/{trial.key}.json"


def sweep(
    run: Run, trials: Sequence[Trial], measure_all: Callable[[Sequence[Trial]], Iterable[Row]] | None = None
) -> Iterator[Row]:
    """Rows of all trials as they come, those that are there first; each with ``places`` and ``seed``.

    Args:
        measure_all: measures trials that nobody has measured; by default here, one after the other.
    """
    of_key = {trial.key: trial for trial in trials}
    rows = {trial.key: read_row(run.store, trial) for trial in trials}
    open_trials = [trial for trial in trials if rows[trial.key] is None]
    measured = measure_all(open_trials) if measure_all else (measure_trial(run, trial) for trial in open_trials)
    for row in chain((row for row in rows.values() if row is not None), measured):
        yield _named(row, of_key[row["key"]])


def _named(row: Row, trial: Trial) -> Row:
    return {**row, "places": [list(place) for place in trial.places], "seed": trial.train.seed}


def tabulate(rows: Sequence[Row], axes: Mapping[str, Sequence[str]]) -> list[Row]:
    """A row for each value of each axis: mean over seeds and half the 95% interval of each of ``SCORES``.

    A value of which a seed was refused has no scores.
    """
    table = []
    for axis, values in axes.items():
        for value in values:
            mine = [row for row in rows if [axis, value] in row["places"]]
            scores = {
                score: interval([row[score] for row in mine])
                for score in SCORES
                if mine and all(score in r for r in mine)
            }
            table.append({"axis": axis, "value": value, "runs": len(mine), **scores})
    return table


def in_words(row: Row) -> str:
    """A row in one line."""
    places = ", ".join(f"{axis} {value}" for axis, value in row["places"])
    if "refused" in row:
        return f"{places}, seed {row['seed']}: {row['refused']}"
    return f"{places}, seed {row['seed']}: kNN {row['knn_accuracy']:.3f}, {row['images_per_s']:.0f} images/s"


def as_text(row: Row) -> dict[str, str]:
    """A row of the table: means, with half their interval where there is one."""
    told = {"axis": row["axis"], "value": row["value"], "runs": str(row["runs"])}
    for score in SCORES:
        if score in row:
            mean, half = row[score]
            digits = 0 if score == "images_per_s" else 3
            told[score] = f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")
    return told

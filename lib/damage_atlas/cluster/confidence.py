"""How sure a cluster is: whether it comes back on other maps, and whether it holds together in the embedding itself.

N points, K neighbours, C clusters, S points of a resample.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, mutual_info_score, silhouette_score
from sklearn.metrics.cluster import expected_mutual_information
from threadpoolctl import threadpool_limits

from damage_atlas.cluster.density import FoundClusters, find_clusters
from damage_atlas.cluster.near import find_neighbours
from damage_atlas.cluster.tsne import SMALLEST_MAP, make_map
from damage_atlas.neighbours import Floats, Ints
from damage_atlas.parts import MapParts
from damage_atlas.spec import ClusterSpec

REAPPEARS_AS_ITSELF = 0.5  # share of resamples: a cluster that comes back in fewer was drawn together by the map
CONFIDENT = 0.5  # uniform random vectors stay below it, see docs/results.md
_DRAWN_SHARE = 0.8  # of the photos: each resample leaves out a fifth
_FEW_GROUPS = 10  # with fewer photos, images are drawn instead
_EPS_FACTORS = (1.0, 0.8, 1.2)
_SAME = 0.5  # Jaccard index from which a cluster has come back: below it, Hennig 2007 calls it dissolved
_KEPT_OF_EACH = 50  # points of every cluster that a resample keeps however large the archive
_BODY_SHARE = 0.9  # of all points: a cluster of more has nothing to be told from, and does not count as held together
_SAMPLE = 3000  # points that scores over all pairs, or over all contingencies, are computed on
_EXPLAINED = 0.1  # adjusted mutual information from which something explains a cluster


@dataclass(frozen=True)
class Confidence:
    """Of each cluster, in the order of labels.

    Attributes:
        reappears_C: share of the resamples that hold some of it in which it came back; NaN if none does.
        cohesion_C: share of its points' neighbours in the embedding that lie in it, beyond what its size alone gives
            them: 0 for no more than that, and for a cluster of nearly all points; 1 for all.
        agreement: mean adjusted Rand index of the clusters with those of a resample; NaN without resamples.
        made: resamples that were made for it.
    """

    reappears_C: NDArray[np.float64]
    cohesion_C: NDArray[np.float64]
    agreement: float
    made: int = 0

    @property
    def confidence_C(self) -> NDArray[np.float64]:
        """The lower of the two: a cluster must come back, and hold together."""
        return np.fmin(self.reappears_C, self.cohesion_C)


@dataclass(frozen=True)
class _Resample:
    number: int
    turn: int  # which of a round it is
    rows_S: Ints


def measure_confidence(
    vectors_ND: Floats,
    near_ids_NK: Ints,
    labels_N: Ints,
    groups_N: Sequence[str | None],
    spec: ClusterSpec,
    map_parts: MapParts,
    before: Mapping[int, float] | None = None,
    earlier_rounds: int = 0,
) -> Confidence:
    """Cluster again on maps of other seeds, of four fifths of the photos, with eps up to a fifth smaller and larger.

    Where it is known of every cluster how often it came back in the version before, as it is on most nights, a few
    resamples are made anew; they count for their share of all, and what was known for the rest.

    Args:
        near_ids_NK: neighbours of each vector in the embedding, without itself.
        labels_N: the clusters, -1 for noise.
        groups_N: which images come from one photo and are drawn together; None: by itself.
        before: label -> share of the earlier resamples in which the cluster came back.
        earlier_rounds: versions before this one, so that each draws others, and of a few the eps takes turns too.
    """
    clusters = int(labels_N.max(initial=-1)) + 1
    cohesion = _cohesion(near_ids_NK, labels_N, clusters)
    if spec.resamples == 0 or clusters == 0 or len(labels_N) < SMALLEST_MAP:
        return Confidence(np.full(clusters, np.nan), cohesion, float("nan"))
    groups = _codes([f"image {row}" if group is None else f"group {group}" for row, group in enumerate(groups_N)])
    is_known = before is not None and all(label in before for label in range(clusters))
    wanted = min(spec.resamples_kept, spec.resamples) if is_known else spec.resamples
    turns = [(earlier_rounds * wanted + place) % spec.resamples for place in range(wanted)]
    numbers = [earlier_rounds * spec.resamples + turn for turn in turns]
    resamples = [
        _Resample(number, turn, _draw(labels_N, groups, spec, np.random.default_rng((spec.seed, number))))
        for number, turn in zip(numbers, turns, strict=True)
    ]

    # A cluster of a dozen images keeps nine or ten of them: with as many neighbours asked for as before it could not
    # come back whatever it is, and a new kind of damage begins so. (The method `paper` keeps the paper's number.)
    thinned = spec.model_copy(
        update={
            "min_neighbours": max(round(_DRAWN_SHARE * spec.min_neighbours), 1),
            "threads": max(spec.threads // len(resamples), 1),  # they are made beside each other
        }
    )

    def again(resample: _Resample) -> tuple[NDArray[np.float64], float]:
        seed, factor = spec.seed + resample.number + 1, _EPS_FACTORS[resample.turn % len(_EPS_FACTORS)]
        found = cluster_afresh(vectors_ND[resample.rows_S], thinned, seed, factor)[1].labels_N
        before = labels_N[resample.rows_S]
        return _jaccard(before, found, clusters), float(adjusted_rand_score(before, found))

    # One limit around all: each map sets its own, and one that ends would lift that of its neighbours.
    with threadpool_limits(limits=1, user_api="blas"):
        results = list(map_parts(again, resamples))
    jaccard_RC = np.array([jaccard for jaccard, _ in results])
    seen = ~np.isnan(jaccard_RC)
    came_back = (np.where(seen, jaccard_RC, 0) >= _SAME).sum(axis=0)
    reappears = np.where(seen.any(axis=0), came_back / np.maximum(seen.sum(axis=0), 1), np.nan)
    if before is not None and is_known:
        earlier = np.array([before[label] for label in range(clusters)])
        part = wanted / spec.resamples
        reappears = np.where(np.isnan(reappears), earlier, (1 - part) * earlier + part * reappears)
    return Confidence(reappears, cohesion, float(np.mean([a for _, a in results])), len(results))


def explained_by(
    labels_N: Ints, damage_N: Sequence[str | None], nuisances: Mapping[str, Sequence[str | None]]
) -> tuple[dict[str, float], list[str | None]]:
    """What clusters have to do with where an image comes from, by adjusted mutual information (Vinh et al. 2010).

    A cluster is compared with single classes and single values: with all values of a nuisance at once the information
    shared would be the smaller the more values there are, however well one of them fits.

    Args:
        damage_N: class of each image, given or predicted.
        nuisances: name -> value for each image, None where it has none. One that has a single value, or another for
            each image, says nothing; None counts as one where all clusters are compared with all values.

    Returns:
        The adjusted mutual information of the clusters with each nuisance and with ``class``; and for each cluster the
        nuisance that explains it better than the class does, None where none does.
    """
    rows = np.random.default_rng(0).permutation(len(labels_N))[:_SAMPLE]
    damage = _codes(damage_N)
    codes = {name: _codes(values) for name, values in nuisances.items()}
    codes = {name: values for name, values in codes.items() if 1 < len(np.unique(values[rows])) <= len(rows) / 2}
    overall = {name: float(adjusted_mutual_info_score(values[rows], labels_N[rows])) for name, values in codes.items()}
    if len(rows):
        overall["class"] = float(adjusted_mutual_info_score(damage[rows], labels_N[rows]))
    marks: list[str | None] = []
    for cluster in range(int(labels_N.max(initial=-1)) + 1):
        member = labels_N == cluster
        scores = {name: _best_value(member, values) for name, values in codes.items()}
        best = max(scores, key=lambda name: (scores[name], name), default=None)
        limit = max(_best_value(member, damage), _EXPLAINED)
        marks.append(best if best is not None and scores[best] > limit else None)
    return overall, marks


def _best_value(member_N: NDArray[np.bool_], codes_N: Ints) -> float:
    """The most that a single value (a code, -1 for none) says about who is a member: adjusted mutual information."""
    n, members = len(member_N), int(member_N.sum())
    here = np.bincount(codes_N[member_N] + 1)[1:]
    if not here.any() or members == n:
        return 0.0
    everywhere = np.bincount(codes_N + 1, minlength=len(here) + 1)[1 : len(here) + 1]
    # The value most over-represented among members, as the phi coefficient has it: as a rule the most informative one.
    beyond = here / members - everywhere / n
    best = int(np.argmax(beyond / np.sqrt(np.maximum(everywhere / n * (1 - everywhere / n), 1 / n**2))))
    both, other = int(here[best]), int(everywhere[best])
    if beyond[best] <= 0 or other == n:
        return 0.0  # information is shared with a value that is missing here as well, but that explains nothing
    table = np.array([[both, members - both], [other - both, n - members - other + both]])
    chance = expected_mutual_information(table, n)
    entropies = [-(p * np.log(p) + (1 - p) * np.log1p(-p)) for p in (members / n, other / n)]
    shared = mutual_info_score(None, None, contingency=table)
    return float((shared - chance) / max(np.mean(entropies) - chance, np.finfo(float).eps))


def silhouette(vectors_ND: Floats, labels_N: Ints) -> float | None:
    """Mean silhouette (Rousseeuw 1987) of clustered points over cosine distances in the embedding, noise left out.

    None with fewer than two clusters. Of large archives it is that of a sample.
    """
    rows = np.random.default_rng(0).permutation(np.flatnonzero(labels_N >= 0))[:_SAMPLE]
    if not 2 <= len(np.unique(labels_N[rows])) < len(rows):
        return None
    return float(silhouette_score(vectors_ND[rows], labels_N[rows], metric="cosine"))


def density_validity(positions_N2: Floats, labels_N: Ints) -> float | None:
    """DBCV (Moulavi et al. 2014) of the clusters on the map, -1 to 1: how dense inside, how empty between.

    Noise counts as a cluster without validity. None with fewer than two clusters. Of large archives it is that of a
    sample.
    """
    rows = np.random.default_rng(0).permutation(len(labels_N))[:_SAMPLE]
    _, of_row, sizes = np.unique(labels_N[rows], return_inverse=True, return_counts=True)
    labels = np.where((labels_N[rows] >= 0) & (sizes[of_row] > 2), labels_N[rows], -1)  # a pair has no inside
    if len(np.unique(labels[labels >= 0])) < 2:
        return None
    from hdbscan.validity import validity_index  # half a second, which only this stage should pay

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # points in one place are infinitely dense
        value = float(validity_index(positions_N2[rows].astype(np.float64), labels))
    return value if np.isfinite(value) else None


def _cohesion(near_ids_NK: Ints, labels_N: Ints, clusters: int) -> NDArray[np.float64]:
    if clusters == 0 or near_ids_NK.shape[1] == 0:
        return np.zeros(clusters)
    clustered = labels_N >= 0
    same = (labels_N[near_ids_NK] == labels_N[:, None]).mean(axis=1)
    sizes = np.bincount(labels_N[clustered], minlength=clusters)
    share = np.bincount(labels_N[clustered], same[clustered], minlength=clusters) / sizes
    by_size = (sizes - 1) / max(len(labels_N) - 1, 1)
    beyond = np.divide(share - by_size, 1 - by_size, out=np.zeros(clusters), where=by_size <= _BODY_SHARE)
    return np.asarray(np.clip(beyond, 0, 1))


def _draw(labels_N: Ints, groups: Ints, spec: ClusterSpec, draw: np.random.Generator) -> Ints:
    """Rows of four fifths of the photos; of a large archive a sample of them in which every cluster keeps some."""
    if groups.max() + 1 < _FEW_GROUPS:
        groups = np.arange(len(groups))
    order = draw.permutation(int(groups.max()) + 1)
    rows = np.flatnonzero(np.isin(groups, order[: max(int(_DRAWN_SHARE * len(order)), 1)]))
    if len(rows) <= spec.resample_points:
        return rows
    rows = draw.permutation(rows)
    by_label = np.argsort(labels_N[rows], kind="stable")
    place = np.empty(len(rows), np.int64)  # of each row among those of its cluster
    _, first, counts = np.unique(labels_N[rows][by_label], return_index=True, return_counts=True)
    place[by_label] = np.arange(len(rows)) - np.repeat(first, counts)
    kept = (place < _KEPT_OF_EACH) & (labels_N[rows] >= 0)
    others = np.flatnonzero(~kept)[: max(spec.resample_points - int(kept.sum()), 0)]
    return np.sort(np.concatenate([rows[kept], rows[others]]))


def cluster_afresh(
    vectors_ND: Floats, spec: ClusterSpec, seed: int, eps_factor: float = 1.0
) -> tuple[Floats, FoundClusters]:
    """A map that begins from places drawn by the seed (N x 2), and its clusters."""
    near = find_neighbours(vectors_ND, int(3 * spec.perplexity))
    positions = make_map(vectors_ND, near, spec, random_start=seed)
    return positions, find_clusters(positions, vectors_ND, spec, eps_factor)


def _jaccard(before_S: Ints, found_S: Ints, clusters: int) -> NDArray[np.float64]:
    """Of each cluster the largest Jaccard index with a cluster found again; NaN where the resample has none of it."""
    others = int(found_S.max(initial=-1)) + 1
    both = np.zeros((clusters, others + 1))  # the last column: noise
    clustered = before_S >= 0
    np.add.at(both, (before_S[clustered], np.where(found_S < 0, others, found_S)[clustered]), 1)
    sizes = both.sum(axis=1)
    found_sizes = np.bincount(found_S[found_S >= 0], minlength=others)
    union = sizes[:, None] + found_sizes[None, :] - both[:, :others]
    largest = (both[:, :others] / np.maximum(union, 1)).max(axis=1, initial=0.0)
    return np.where(sizes > 0, largest, np.nan)


def _codes(values: Sequence[str | None]) -> Ints:
    """A number for each value, in the order of values, -1 for None; in Arrow, whose texts are as long as they are."""
    encoded = pc.dictionary_encode(pa.array(values, pa.string()))
    rank = np.empty(len(encoded.dictionary) + 1, np.int64)
    rank[pc.array_sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank) - 1)
    rank[-1] = -1
    return rank[pc.fill_null(encoded.indices, len(rank) - 1).to_numpy()]

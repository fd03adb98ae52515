"""Clusters of the map: DBSCAN, a radius chosen without labels, and a second look in the embedding.

N points on the map, D embedding dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from damage_atlas.cluster.dbscan import dbscan
from damage_atlas.neighbours import Floats, Ints

_SMALLEST_EPS = 1e-3
_CLOSER_LOOKS = (0.9, 0.8, 0.7, 0.6, 0.5)  # shares of a cluster's eps that are tried to find its parts
_LOOSE_SHARE = 0.25  # of a cluster that belongs to no part: with more, the parts are fragments
_SILHOUETTE_SAMPLE = 2000  # points; the score takes all pairs


@dataclass(frozen=True)
class FoundClusters:
    """Labels 0, 1, … with -1 for noise, numbered by falling size; and each point's role."""

    labels_N: Ints
    roles: list[str]


def find_clusters(positions_N2: Floats, eps: float, min_neighbours: int) -> FoundClusters:
    """Core points have ``min_neighbours`` points (themselves included, as in MATLAB) within ``eps``."""
    found, is_core = dbscan(positions_N2, eps, min_neighbours)
    labels = _by_size(found)
    roles = [
        "noise" if label < 0 else "core" if core else "border" for label, core in zip(labels, is_core, strict=True)
    ]
    return FoundClusters(labels, roles)


def split_clusters(
    found: FoundClusters, positions_N2: Floats, vectors_ND: Floats, eps: float, min_neighbours: int, apart: float
) -> FoundClusters:
    """Split clusters that a thin bridge on the map holds together although their parts are apart in the embedding.

    DBSCAN with one eps joins two dense groups as soon as a few points lie between them. Inside each cluster smaller
    radii are tried; its parts become clusters of their own if their silhouette (Rousseeuw 1987) over cosine distances
    in the embedding reaches ``apart``. What belongs to no part goes to the nearest one; no point becomes noise.
    """
    labels = found.labels_N.copy()
    waiting = [(label, eps) for label in range(labels.max(initial=-1) + 1)]
    free = len(waiting)
    while waiting:
        label, radius = waiting.pop()
        rows = np.flatnonzero(labels == label)
        split = _parts(positions_N2[rows], vectors_ND[rows], radius, min_neighbours, apart)
        if split is None:
            continue
        part_of, radius = split
        for part in range(part_of.max() + 1):
            name = label if part == 0 else free
            free += part > 0
            labels[rows[part_of == part]] = name
            waiting.append((name, radius))
    return FoundClusters(_by_size(labels), found.roles)


def _parts(
    positions_N2: Floats, vectors_ND: Floats, eps: float, min_neighbours: int, apart: float
) -> tuple[Ints, float] | None:
    """Part of each point, and the radius that parted them; None where the cluster is one."""
    if len(positions_N2) < 2 * min_neighbours:
        return None
    for share in _CLOSER_LOOKS:
        part_of, _ = dbscan(positions_N2, eps * share, min_neighbours)
        # A core point's neighbours are all in its part, so that none is smaller than min_neighbours but by a border.
        held = part_of >= 0
        if held.mean() < 1 - _LOOSE_SHARE:
            return None
        parts = int(part_of.max()) + 1
        if parts < 2 or parts >= held.sum():
            continue
        if _silhouette(vectors_ND, part_of, parts) >= apart:
            if not held.all():
                nearest = KNeighborsClassifier(n_neighbors=1).fit(positions_N2[held], part_of[held])
                part_of[~held] = nearest.predict(positions_N2[~held])
            return part_of, eps * share
    return None


def _silhouette(vectors_ND: Floats, part_of: Ints, parts: int) -> float:
    """Over cosine distances, of at most some thousand points: the score takes all pairs, and some of every part."""
    draw = np.random.default_rng(0)
    each = max(_SILHOUETTE_SAMPLE // parts, 2)
    rows = np.concatenate([draw.permutation(np.flatnonzero(part_of == part))[:each] for part in range(parts)])
    return float(silhouette_score(vectors_ND[rows], part_of[rows], metric="cosine"))


def _by_size(labels_N: Ints) -> Ints:
    """The same clusters numbered by falling size; -1 stays."""
    names, sizes = np.unique(labels_N[labels_N >= 0], return_counts=True)
    rank = np.full(int(names.max(initial=-1)) + 2, -1, np.int64)
    rank[names[np.lexsort((names, -sizes))]] = np.arange(len(names))
    return np.asarray(rank[labels_N])


def choose_eps(positions_N2: Floats, min_neighbours: int) -> float:
    """The knee of the sorted distances to the ``min_neighbours``-th neighbour, looked for in their upper half.

    The knee is the point farthest below the chord from the median to the 99.5th percentile: nearer points lie in
    dense regions, farther ones between them (Ester et al. 1996, section 4.2; Satopää et al. 2011).
    """
    if len(positions_N2) <= min_neighbours:
        return _SMALLEST_EPS
    search = NearestNeighbors(n_neighbors=min_neighbours).fit(positions_N2)
    distances: NDArray[np.float64] = np.sort(search.kneighbors(positions_N2)[0][:, -1].astype(np.float64))
    curve = np.quantile(distances, np.linspace(0.5, 0.995, 200))
    chord = np.linspace(curve[0], curve[-1], len(curve))
    return max(float(curve[(chord - curve).argmax()]), _SMALLEST_EPS)

"""DBSCAN on the map (Ester et al. 1996), and a radius chosen without labels. N points on the map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN
from sklearn.neighbors import NearestNeighbors

from damage_atlas.neighbours import Floats, Ints

_SMALLEST_EPS = 1e-3


@dataclass(frozen=True)
class FoundClusters:
    """Labels 0, 1, … with -1 for noise, numbered by falling size; and each point's role."""

    labels_N: Ints
    roles: list[str]


def find_clusters(positions_N2: Floats, eps: float, min_neighbours: int) -> FoundClusters:
    """Core points have ``min_neighbours`` points (themselves included, as in MATLAB) within ``eps``."""
    if len(positions_N2) == 0:
        return FoundClusters(np.empty(0, np.int64), [])
    result = DBSCAN(eps=eps, min_samples=min_neighbours).fit(positions_N2)
    labels = result.labels_.astype(np.int64)
    is_core = np.zeros(len(labels), bool)
    is_core[result.core_sample_indices_] = True
    roles = [
        "noise" if label < 0 else "core" if core else "border" for label, core in zip(labels, is_core, strict=True)
    ]
    names, sizes = np.unique(labels[labels >= 0], return_counts=True)
    rank = np.full(len(names) + 1, -1, np.int64)
    rank[names[np.lexsort((names, -sizes))]] = np.arange(len(names))
    return FoundClusters(np.where(labels < 0, -1, rank[labels]), roles)


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

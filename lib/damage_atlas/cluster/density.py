"""Clusters of the map: DBSCAN, HDBSCAN or k-means, and a second look in the embedding.

N points on the map, D embedding dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from damage_atlas.cluster.dbscan import dbscan
from damage_atlas.cluster.radius import Radius, choose_eps
from damage_atlas.neighbours import Floats, Ints
from damage_atlas.spec import PAPER_EPS, PAPER_MIN_NEIGHBOURS, ClusterSpec

_CLOSER_LOOKS = (0.9, 0.8, 0.7, 0.6, 0.5)  # shares of a cluster's eps that are tried to find its parts
_LOOSE_SHARE = 0.25  # of a cluster that belongs to no part: with more, the parts are fragments
_SILHOUETTE_SAMPLE = 2000  # points; the score takes all pairs


@dataclass(frozen=True)
class FoundClusters:
    """Labels 0, 1, … with -1 for noise, numbered by falling size; and each point's role.

    Attributes:
        radius: what DBSCAN was run with; None for other methods.
        split: clusters that there are more because the embedding parts what a bridge on the map joins.
    """

    labels_N: Ints
    roles: list[str]
    radius: Radius | None = None
    split: int = 0


def find_clusters(
    positions_N2: Floats,
    vectors_ND: Floats,
    spec: ClusterSpec,
    eps_factor: float = 1.0,
    eps_before: float | None = None,
) -> FoundClusters:
    """The clusters of the map by the method of the settings.

    Args:
        eps_factor: of DBSCAN's radius, to see what hangs on it.
        eps_before: the radius of an earlier version on the same map, which ``auto`` keeps while it can.
    """
    if spec.method == "kmeans":
        return _kmeans(positions_N2, spec)
    if spec.method == "hdbscan":
        return _hdbscan(positions_N2, spec.min_neighbours)
    if spec.method == "paper":
        radius, least, apart = Radius(PAPER_EPS), PAPER_MIN_NEIGHBOURS, None
    else:
        least, apart = spec.min_neighbours, spec.split_apart
        if spec.eps == "auto":
            radius = choose_eps(positions_N2, least, eps_before)
        else:
            radius = Radius(float(spec.eps))
    if eps_factor != 1:
        radius = replace(radius, eps=radius.eps * eps_factor, found=None)
    found = _as_clusters(*(radius.found or dbscan(positions_N2, radius.eps, least)))
    if apart is not None:
        split = split_clusters(found, positions_N2, vectors_ND, radius.eps, least, apart)
        found = replace(split, split=int(split.labels_N.max(initial=-1) - found.labels_N.max(initial=-1)))
    return replace(found, radius=radius)


def dbscan_clusters(positions_N2: Floats, eps: float, min_neighbours: int) -> FoundClusters:
    """Core points have ``min_neighbours`` points (themselves included, as in MATLAB) within ``eps``."""
    return _as_clusters(*dbscan(positions_N2, eps, min_neighbours))


def _as_clusters(found_N: Ints, is_core_N: NDArray[np.bool_]) -> FoundClusters:
    labels = _by_size(found_N)
    roles = [
        "noise" if label < 0 else "core" if core else "border" for label, core in zip(labels, is_core_N, strict=True)
    ]
    return FoundClusters(labels, roles)


def _kmeans(positions_N2: Floats, spec: ClusterSpec) -> FoundClusters:
    """k-means on the map; every point belongs, so that there is neither border nor noise."""
    count = min(spec.kmeans_clusters, len(np.unique(positions_N2, axis=0)))
    if count == 0:
        return FoundClusters(np.empty(0, np.int64), [])
    with threadpool_limits(limits=1):  # sums depend on the number of threads
        labels = KMeans(count, n_init=5, random_state=spec.seed).fit_predict(positions_N2)
    return FoundClusters(_by_size(labels.astype(np.int64)), ["core"] * len(labels))


def _hdbscan(positions_N2: Floats, min_neighbours: int) -> FoundClusters:
    """HDBSCAN on the map (Campello et al. 2013), without a radius; a cluster has ``min_neighbours`` points or more."""
    if len(positions_N2) < max(min_neighbours, 2):
        return FoundClusters(np.full(len(positions_N2), -1, np.int64), ["noise"] * len(positions_N2))
    labels = HDBSCAN(min_cluster_size=max(min_neighbours, 2), copy=True).fit_predict(positions_N2)
    labels = _by_size(labels.astype(np.int64))
    return FoundClusters(labels, ["noise" if label < 0 else "core" for label in labels])


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

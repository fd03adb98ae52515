"""A map that stays where it is: new points are placed among the old ones, and a new map is turned to lie like the old.

N points, of which those that the previous version has placed are old; M new points; G points of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from damage_atlas.cluster.tsne import SMALLEST_MAP, Positions, join_map, make_map
from damage_atlas.neighbours import Floats, Ints, Neighbours, exact_neighbours
from damage_atlas.spec import ClusterSpec

_AROUND = 5  # old neighbours whose median place a new point starts from
_UNLIKE_QUANTILE = 0.999  # of the old points' distances to their nearest: beyond it a new point is unlike all of them
_UNLIKE_SHARE = 0.1  # of all points: with more, the map is of something else
_GAP = 2.0  # between a point set apart and all others, in distances to the 10th neighbour (99th percentile)
_GAP_NEIGHBOURS, _GAP_QUANTILE = 10, 0.99
_MOST_GROUPS = 300  # the largest, that are set apart: each takes some hundredths of a second
_LOOKED_AT = 150  # places along each axis that are tried for a group that is set apart


@dataclass(frozen=True)
class OldMap:
    """The previous version's map, seen from this run's points.

    Attributes:
        positions_N2: where each point lay; NaN for new ones.
        gone: points of it that this run no longer has.
        changed: points placed on it or taken from it since it was fitted.
        refit: why it cannot or must not be kept; empty if it can.
        eps: the radius of its clusters; None for clusters without one.
        landmark_N: which points were on it themselves; None: all that have a place.
    """

    positions_N2: Positions
    gone: int = 0
    changed: int = 0
    refit: str = ""
    eps: float | None = None
    landmark_N: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Layout:
    """Positions, N x 2, and how they came about."""

    positions_N2: Floats
    how: str  # fitted, placed, or fitted again
    why: str
    changed: int = 0  # points placed or taken away since the map was fitted
    unlike_N: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    moved_share: float = 0.0  # median movement of old points, in widths of the old map


def lay_out(vectors_ND: Floats, near: Neighbours, spec: ClusterSpec, old: OldMap | None) -> Layout:
    """The map of this run: the old one with new points placed, or a new one, turned to lie like the old.

    Args:
        near: neighbours of each vector without itself, nearest first.
        old: None where there is no earlier map.
    """
    n = len(vectors_ND)
    if old is None:
        return Layout(make_map(vectors_ND, near, spec), "fitted", "there is no earlier map", unlike_N=np.zeros(n, bool))
    placed = ~np.isnan(old.positions_N2[:, 0])
    changed = old.changed + old.gone + int((~placed).sum())
    unlike = np.zeros(n, bool)
    why = old.refit or _unfit(old.positions_N2[placed])
    if not why and changed > spec.refit_above * n:
        why = f"{changed:,} images came or went since the map was fitted, more than {spec.refit_above:.0%} of {n:,}"
    if not why:
        unlike = _unlike(vectors_ND, near, placed)
        if unlike.sum() > _UNLIKE_SHARE * n:
            why = f"{int(unlike.sum()):,} of {n:,} images are unlike all that is on the map"
    if why:
        positions = make_map(vectors_ND, near, spec, old.positions_N2)
        aligned = align(positions, old.positions_N2).astype(np.float32)
        return Layout(aligned, "fitted again", why, 0, np.zeros(n, bool), movement(aligned, old.positions_N2))
    positions = place_points(vectors_ND, near, spec, old.positions_N2, unlike)
    kept = "the earlier map is kept"
    return Layout(positions, "placed", kept, changed, unlike, movement(positions, old.positions_N2))


def place_points(
    vectors_ND: Floats, near: Neighbours, spec: ClusterSpec, old_N2: Positions, unlike_N: NDArray[np.bool_]
) -> Floats:
    """Old points where they are, new ones among them: N x 2, float32. What is unlike all old points lies apart.

    Args:
        old_N2: positions of old points, NaN for new ones.
        unlike_N: new points that no old one is like; a group of them must not end up in the midst of old points.
    """
    placed = ~np.isnan(old_N2[:, 0])
    if placed.all():
        return old_N2.astype(np.float32)
    start = old_N2.copy()
    around = exact_neighbours(vectors_ND[placed], _AROUND, vectors_ND[~placed]).ids_NK
    start[~placed] = np.median(old_N2[placed][around], axis=1)
    # Images that share all neighbours would start in one point and never part.
    jitter = 1e-3 * old_N2[placed].std()
    start[~placed] += np.random.default_rng(spec.seed).normal(0, jitter, (int((~placed).sum()), 2))
    positions = join_map(near, spec, start, placed)
    return set_apart(positions, vectors_ND, np.flatnonzero(unlike_N), placed)


def align(positions_N2: Floats, old_N2: Positions) -> Positions:
    """The positions turned, mirrored and shifted, but not scaled, to lie as nearly as they can where they lay before.

    Args:
        old_N2: NaN for points without an earlier place; with fewer than two others nothing is turned.
    """
    placed = ~np.isnan(old_N2[:, 0])
    positions = positions_N2.astype(np.float64)
    if placed.sum() < 2:
        return positions
    centre, old_centre = positions[placed].mean(axis=0), old_N2[placed].mean(axis=0)
    turn, _ = orthogonal_procrustes(positions[placed] - centre, old_N2[placed] - old_centre)
    return np.asarray((positions - centre) @ turn + old_centre)


def movement(positions_N2: Floats, old_N2: Positions) -> float:
    """Median distance that old points have moved, as a share of the old map's width."""
    placed = ~np.isnan(old_N2[:, 0])
    width = np.ptp(old_N2[placed], axis=0).max() if placed.any() else 0.0
    if width == 0:
        return 0.0
    return float(np.median(np.linalg.norm(positions_N2[placed] - old_N2[placed], axis=1)) / width)


def _unfit(old_N2: Positions) -> str:
    if len(old_N2) < SMALLEST_MAP:
        return f"of the earlier map {len(old_N2)} images are left"
    if np.ptp(old_N2, axis=0).max() == 0:
        return "the earlier map has no extent"
    return ""


def _unlike(vectors_ND: Floats, near: Neighbours, placed_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which new points are farther from all old ones than almost any old point is from the next."""
    unlike = np.zeros(len(placed_N), bool)
    if placed_N.all():
        return unlike
    near_old = placed_N[near.ids_NK[placed_N]]
    known = near_old.any(axis=1)  # else all its neighbours are new, and its next old one was not asked for
    first = near_old.argmax(axis=1)
    distances = 1 - np.take_along_axis(near.similarities_NK[placed_N], first[:, None], 1)[known, 0]
    if len(distances) == 0:
        return unlike
    nearest = 1 - exact_neighbours(vectors_ND[placed_N], 1, vectors_ND[~placed_N]).similarities_NK[:, 0]
    unlike[~placed_N] = nearest > max(float(np.quantile(distances, _UNLIKE_QUANTILE)), 1e-6)
    return unlike


def set_apart(positions_N2: Floats, vectors_ND: Floats, rows_M: Ints, placed_N: NDArray[np.bool_]) -> Floats:
    """Take groups of unlike points that lie near old ones to the nearest free place, each group as it lies."""
    if len(rows_M) == 0:
        return positions_N2
    positions = positions_N2.astype(np.float64)
    old = cKDTree(positions[placed_N])
    k = min(_GAP_NEIGHBOURS, int(placed_N.sum()))
    spacing = np.quantile(old.query(positions[placed_N], k=[k])[0], _GAP_QUANTILE)
    gap = _GAP * max(float(spacing), 1e-3)
    staying = cKDTree(np.delete(positions, rows_M, axis=0))  # once: there may be thousands of groups
    for group in _groups(vectors_ND, rows_M)[:_MOST_GROUPS]:
        if old.query(positions[group])[0].min() >= gap:
            continue
        shape = positions[group] - positions[group].mean(axis=0)
        # Members that ended up in different places come together: their shape says nothing then.
        reach = np.linalg.norm(shape, axis=1).max()
        radius = min(reach, gap / 4 * np.sqrt(len(group)))
        shape *= radius / max(reach, 1e-12)
        moving = cKDTree(positions[np.setdiff1d(rows_M, group, assume_unique=True)])
        positions[group] = shape + _free_place([staying, moving], positions[group].mean(axis=0), gap + radius)
    return positions.astype(np.float32)


def _groups(vectors_ND: Floats, rows_M: Ints) -> list[Ints]:
    """Groups of points of which each is the nearest to another, the largest group first."""
    near = exact_neighbours(vectors_ND[rows_M], 2).ids_NK
    links = coo_array((np.ones(len(rows_M)), (np.arange(len(rows_M)), near[:, -1])), shape=(len(rows_M),) * 2)
    count, group = connected_components(links, directed=False)
    return sorted((rows_M[group == g] for g in range(count)), key=lambda rows: (-len(rows), rows[0]))


def _free_place(others: Sequence[cKDTree], wanted: Positions, clearance: float) -> Positions:
    """The place nearest to ``wanted`` that is no nearer than ``clearance`` to any of the other points."""
    others = [tree for tree in others if tree.n]
    low = np.min([tree.mins for tree in others], axis=0) - 2 * clearance
    high = np.max([tree.maxes for tree in others], axis=0) + 2 * clearance
    axes = [np.linspace(low[i], high[i], _LOOKED_AT) for i in range(2)]
    places = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    places = places[np.linalg.norm(places - wanted, axis=1).argsort(kind="stable")]
    for some in np.array_split(places, _LOOKED_AT // 10):
        # Beyond the bound a query ends early, with an infinite distance.
        near = [tree.query(some, distance_upper_bound=clearance)[0] < clearance for tree in others]
        if not (taken := np.any(near, axis=0)).all():
            return np.asarray(some[taken.argmin()])
    raise AssertionError("the rim lies twice the clearance away from all points")

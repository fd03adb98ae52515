"""Exact DBSCAN of points in the plane (Ester et al. 1996), in memory that grows with the points, not with neighbours.

Points are sorted into square cells whose diagonal is just below eps, after Gunawan 2013 ("A faster algorithm for
DBSCAN"): points of one cell are all neighbours, so that most points need no distance at all, and clusters are
components of cells. Core points and noise are those of scikit-learn; a border point joins the nearest core point, where
scikit-learn lets the order of rows decide.

N points, C cells, T tasks: a point and the run of rows that it is compared with. Rows are sorted by cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from sklearn.cluster import DBSCAN

from damage_atlas.neighbours import Floats, Ints

_PAIRS_AT_ONCE = 500_000  # distances in memory
_PAIRS_BY_TREE = 1_000_000  # of two crowded cells: a tree finds the closest pair sooner
_MOST_CELLS = 2**20  # along an axis; beyond it a cell's border is no longer exact to the margin below
_MARGIN = 1e-9  # a cell's diagonal is shorter than eps by this share, so that rounding parts no neighbours
_REACH = 2  # cells: a point's neighbours lie at most so many away
_AROUND = tuple((i, j) for i in range(-_REACH, _REACH + 1) for j in range(-_REACH, _REACH + 1))
_AHEAD = tuple(offset for offset in _AROUND if offset > (0, 0))

_Doubles = NDArray[np.float64]
_Flags = NDArray[np.bool_]


def dbscan(positions_N2: Floats, eps: float, min_neighbours: int) -> tuple[Ints, _Flags]:
    """Labels (-1 for noise, numbered by their first core point) and whether each point is a core point.

    A core point has at least ``min_neighbours`` points within ``eps``, itself and ties included.

    Raises:
        ValueError: a position is not finite, or ``eps`` is not above 0.
    """
    positions = np.asarray(positions_N2, np.float64)
    if not eps > 0:
        raise ValueError(f"DBSCAN needs a radius above 0, not {eps}.")
    if not np.isfinite(positions).all():
        raise ValueError("DBSCAN was given positions that are not finite numbers.")
    if len(positions) == 0:
        return np.empty(0, np.int64), np.empty(0, bool)
    if np.ptp(positions, axis=0).max() / eps > _MOST_CELLS / 2:
        result = DBSCAN(eps=eps, min_samples=min_neighbours).fit(positions)
        is_core = np.zeros(len(positions), bool)
        is_core[result.core_sample_indices_] = True
        return result.labels_.astype(np.int64), is_core

    grid, order = _Grid.of(positions, eps)
    is_core = _core_points(grid, eps, min_neighbours)
    cores = grid.among(is_core)
    component_C = _components(cores, eps)
    labels = np.full(len(order), -1, np.int64)
    labels[is_core] = component_C[cores.cell_N]
    rest = np.flatnonzero(~is_core)
    nearest = _nearest(grid, rest, cores, eps)
    labels[rest[nearest >= 0]] = component_C[cores.cell_N[nearest[nearest >= 0]]]
    by_row, core_by_row = np.empty_like(labels), np.empty_like(is_core)
    by_row[order], core_by_row[order] = labels, is_core
    return _by_first_core(by_row, core_by_row), core_by_row


@dataclass(frozen=True)
class _Grid:
    """Points in the order of their cells; cell ``c`` holds rows ``starts[c]`` to ``starts[c] + counts[c]``."""

    points_N2: _Doubles
    cell_N: Ints
    keys_C: Ints  # all cells that hold a point of the first grid, ascending
    starts_C: Ints
    counts_C: Ints
    stride: int  # of a key, from one column of cells to the next

    @classmethod
    def of(cls, positions_N2: _Doubles, eps: float) -> tuple[_Grid, Ints]:
        """The grid, and the row of ``positions`` that each of its rows was."""
        side = eps / np.sqrt(2) * (1 - _MARGIN)
        low = positions_N2.min(axis=0)
        keys = np.zeros(len(positions_N2), np.int64)
        stride = int(np.ptp(positions_N2[:, 1]) // side) + 2 * _REACH + 2
        for axis, step in ((0, stride), (1, 1)):
            keys += ((positions_N2[:, axis] - low[axis]) // side).astype(np.int64) * step
        order = np.argsort(keys, kind="stable")
        keys_C, starts, cells, counts = np.unique(
            keys[order], return_index=True, return_inverse=True, return_counts=True
        )
        return cls(positions_N2[order], cells, keys_C, starts, counts, stride), order

    def among(self, chosen_N: _Flags) -> _Grid:
        """The same cells with the chosen points alone."""
        cells = self.cell_N[chosen_N]
        counts = np.bincount(cells, minlength=len(self.keys_C))
        return _Grid(self.points_N2[chosen_N], cells, self.keys_C, np.cumsum(counts) - counts, counts, self.stride)

    def beside(self, offset: tuple[int, int]) -> Ints:
        """For each cell the one that lies ``offset`` away; -1 where none is."""
        wanted = self.keys_C + (offset[0] * self.stride + offset[1])
        place = np.minimum(np.searchsorted(self.keys_C, wanted), len(self.keys_C) - 1)
        return np.where(self.keys_C[place] == wanted, place, -1)


def _core_points(grid: _Grid, eps: float, min_neighbours: int) -> _Flags:
    is_core = (grid.counts_C >= min_neighbours)[grid.cell_N]
    rest = np.flatnonzero(~is_core)
    near = np.zeros(len(rest), np.int64)
    for offset in _AROUND:
        cells = grid.beside(offset)[grid.cell_N[rest]]
        tasks = np.flatnonzero(cells >= 0)
        for own, squared, bounds in _distances(grid, rest[tasks], grid, cells[tasks]):
            near[tasks[own]] += np.add.reduceat(squared <= eps * eps, bounds, dtype=np.int64)
    is_core[rest] = near >= min_neighbours
    return is_core


def _components(cores: _Grid, eps: float) -> Ints:
    """Component of each cell; two are joined where a core point of one is within ``eps`` of one of the other's."""
    squared = eps * eps
    full = cores.counts_C > 0
    from_cells, to_cells, open_pairs = [], [], []
    for offset in _AHEAD:
        other = cores.beside(offset)
        pairs = np.flatnonzero(full & (other >= 0))
        pairs = pairs[full[other[pairs]]]
        # The points that reach farthest towards each other are mostly near enough, and settle it.
        ahead, behind = _farthest(cores, offset, 1), _farthest(cores, offset, -1)
        gaps = cores.points_N2[ahead[pairs]] - cores.points_N2[behind[other[pairs]]]
        joined = (gaps * gaps).sum(axis=1) <= squared
        from_cells.append(pairs[joined])
        to_cells.append(other[pairs[joined]])
        open_pairs.append(np.stack([pairs[~joined], other[pairs[~joined]]], axis=1))
    component = _join(len(full), np.concatenate(from_cells), np.concatenate(to_cells))
    pending = np.concatenate(open_pairs)
    pending = pending[component[pending[:, 0]] != component[pending[:, 1]]]
    touching = [(a, b) for a, b in pending.tolist() if _touch(cores, a, b, eps)]
    if touching:
        more = np.array(touching)
        component = _join(int(component.max()) + 1, component[more[:, 0]], component[more[:, 1]])[component]
    return component


def _join(count: int, from_nodes: Ints, to_nodes: Ints) -> Ints:
    links = coo_array((np.ones(len(from_nodes), np.int8), (from_nodes, to_nodes)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def _farthest(cores: _Grid, offset: tuple[int, int], sign: int) -> Ints:
    """Of each cell's points the row of the one farthest along ``offset``, or against it; 0 in empty cells."""
    along = cores.points_N2 @ (sign * np.array(offset, np.float64))
    found = np.zeros(len(cores.counts_C), np.int64)
    full = cores.counts_C > 0
    if full.any():
        highest = np.maximum.reduceat(along, cores.starts_C[full])
        rows = np.flatnonzero(along == np.repeat(highest, cores.counts_C[full]))
        found[cores.cell_N[rows]] = rows
    return found


def _touch(cores: _Grid, a: int, b: int, eps: float) -> bool:
    first, second = (
        cores.points_N2[cores.starts_C[c] : cores.starts_C[c] + cores.counts_C[c]]
        for c in sorted((a, b), key=lambda c: cores.counts_C[c])
    )
    if len(first) * len(second) > _PAIRS_BY_TREE:
        nearest = cKDTree(second).query(first, distance_upper_bound=eps * (1 + _MARGIN))[1]
        reached = nearest < len(second)
        gaps = first[reached] - second[nearest[reached]]
        return bool(((gaps * gaps).sum(axis=1) <= eps * eps).any())
    gaps = first[:, None] - second[None]
    return bool(((gaps * gaps).sum(axis=2) <= eps * eps).any())


def _nearest(grid: _Grid, rows: Ints, cores: _Grid, eps: float) -> Ints:
    """For each of ``rows`` the nearest core point within ``eps``, as a row of ``cores``; -1 where none is."""
    found = np.full(len(rows), -1, np.int64)
    best = np.full(len(rows), eps * eps)
    for offset in _AROUND:
        cells = grid.beside(offset)[grid.cell_N[rows]]
        tasks = np.flatnonzero((cells >= 0) & (cores.counts_C[cells] > 0))
        for own, squared, bounds in _distances(grid, rows[tasks], cores, cells[tasks]):
            lowest = np.minimum.reduceat(squared, bounds)
            counts = np.diff(bounds, append=len(squared))
            hits = np.flatnonzero(squared == np.repeat(lowest, counts))[::-1]
            segment = np.repeat(np.arange(len(counts)), counts)[hits]
            place = np.empty(len(counts), np.int64)
            place[segment] = hits - bounds[segment]  # hits run backwards: the first one stays
            task = tasks[own]
            nearer = (lowest < best[task]) | ((lowest == best[task]) & (found[task] < 0))
            best[task[nearer]] = lowest[nearer]
            found[task[nearer]] = (cores.starts_C[cells[task]] + place)[nearer]
    return found


def _distances(grid: _Grid, rows_T: Ints, others: _Grid, cells_T: Ints) -> Iterator[tuple[slice, _Doubles, Ints]]:
    """Squared distances of each task's point to all of its cell's, some tasks at a time.

    Yields:
        The tasks, their distances one after the other, and where each task's begin.
    """
    counts = others.counts_C[cells_T]
    ends = np.cumsum(counts)
    first = 0
    while first < len(rows_T):
        done = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")), first + 1)
        own = slice(first, last)
        bounds = ends[own] - counts[own] - done
        where = np.arange(int(ends[last - 1]) - done) + np.repeat(others.starts_C[cells_T[own]] - bounds, counts[own])
        squared = np.zeros(len(where))
        for axis in range(2):
            gaps = np.repeat(grid.points_N2[rows_T[own], axis], counts[own]) - others.points_N2[where, axis]
            squared += gaps * gaps
        yield own, squared, bounds
        first = last


def _by_first_core(labels_N: Ints, is_core: _Flags) -> Ints:
    names, first = np.unique(labels_N[is_core], return_index=True)
    number = np.full(int(labels_N.max(initial=-1)) + 2, -1, np.int64)
    number[names[np.argsort(first)]] = np.arange(len(names))
    return np.asarray(number[labels_N])

"""Neighbours that a version keeps for the next, so that a night searches for its new images and not for all.

N images on the map, K neighbours, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.contracts import NEIGHBOURS
from damage_atlas.neighbours import Floats, Ints, Neighbours, exact_neighbours, without_self
from damage_atlas.parts import plan_parts

WORTH_KEEPING = 20_000  # images on a map: the neighbours of fewer are found in a second or two
_MOST_SEARCHED = 0.2  # of all images: with more to search for, one search for all is as fast
_SAME = 1e-5  # of a similarity: what the order of additions explains
_ROWS_AT_ONCE = 10_000
_NUMBERS_AT_ONCE = 1 << 24  # of vectors of neighbours, gathered


@dataclass(frozen=True)
class KeptNeighbours:
    """What an earlier version knows of this run's images.

    Attributes:
        ids_NK: rows of this run; -1 for images that are gone, and everywhere for new ones.
        farthest_N: similarity to the last of them; NaN for new ones.
    """

    ids_NK: Ints
    farthest_N: Floats


def find_neighbours(vectors_ND: Floats, k: int, kept: KeptNeighbours | None = None) -> Neighbours:
    """The ``k`` nearest of each vector without itself, nearest first, exactly but for equally near ones.

    Args:
        kept: is believed while every image whose neighbours are all there has its last one as far as it was. Images
            that are new, or have lost a neighbour, are searched for.
    """
    n = len(vectors_ND)
    if n <= 1:
        return exact_neighbours(vectors_ND, 0)
    k = min(k, n - 1)
    goes_on = kept is not None and kept.ids_NK.shape[1] == k
    near = _brought_up_to_date(vectors_ND, kept) if kept is not None and goes_on else None
    return without_self(exact_neighbours(vectors_ND, k + 1), k) if near is None else near


def _brought_up_to_date(vectors_ND: Floats, kept: KeptNeighbours) -> Neighbours | None:
    """None where a search for all is as fast, or what was kept is of other vectors."""
    n, k = kept.ids_NK.shape
    is_known = (kept.ids_NK >= 0).all(axis=1)
    searched, known = np.flatnonzero(~is_known), np.flatnonzero(is_known)
    if len(searched) > _MOST_SEARCHED * n:
        return None
    ids, similarities = kept.ids_NK.copy(), np.zeros((n, k), np.float32)
    for part in plan_parts(len(known), max(_NUMBERS_AT_ONCE // (k * vectors_ND.shape[1]), 1)):
        rows = known[part.rows]
        similarities[rows] = np.einsum("nd,nkd->nk", vectors_ND[rows], vectors_ND[ids[rows]])
    if (np.abs(similarities[known].min(axis=1) - kept.farthest_N[known]) >= _SAME).any():
        return None
    if len(searched):
        found = without_self(exact_neighbours(vectors_ND, k + 1, vectors_ND[searched]), k, searched)
        ids[searched], similarities[searched] = found.ids_NK, found.similarities_NK
    new = np.flatnonzero(np.isnan(kept.farthest_N))
    for part in plan_parts(len(known) if len(new) else 0, _ROWS_AT_ONCE):
        # An image keeps the neighbours it had, but for those that a nearer one among the new takes the place of.
        rows = known[part.rows]
        come = exact_neighbours(vectors_ND[new], k, vectors_ND[rows])
        gains = come.similarities_NK[:, 0] > similarities[rows].min(axis=1)
        rows = rows[gains]
        both = np.concatenate([ids[rows], new[come.ids_NK[gains]]], axis=1)
        nearness = np.concatenate([similarities[rows], come.similarities_NK[gains]], axis=1)
        order = np.lexsort((both, -nearness), axis=1)[:, :k]
        ids[rows], similarities[rows] = (np.take_along_axis(values, order, 1) for values in (both, nearness))
    return Neighbours(ids, similarities)


def neighbour_table(ids: Sequence[str], near: Neighbours) -> pa.Table:
    """What the next version is to know; a row for each image on the map, in their order."""
    n, k = near.ids_NK.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * k)
    columns = {
        "image_id": pa.array(ids, pa.string()),
        "near": pa.ListArray.from_arrays(offsets, pa.array(near.ids_NK.ravel().astype(np.int32))),
        "farthest": pa.array(near.similarities_NK.min(axis=1)),
    }
    return pa.table(columns, schema=NEIGHBOURS)


def kept_neighbours(table: pa.Table, ids: Sequence[str]) -> KeptNeighbours:
    """What such a table knows of the images on this run's map."""
    before_M = table["near"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    now = pc.index_in(table["image_id"], value_set=pa.array(ids, pa.string()))
    now_M = pc.fill_null(now, -1).to_numpy().astype(np.int64)
    here = now_M >= 0
    near_NK = np.full((len(ids), before_M.shape[1]), -1, np.int64)
    near_NK[now_M[here]] = now_M[before_M[here]]
    farthest_N = np.full(len(ids), np.nan, np.float32)
    farthest_N[now_M[here]] = table["farthest"].to_numpy()[here]
    return KeptNeighbours(near_NK, farthest_N)

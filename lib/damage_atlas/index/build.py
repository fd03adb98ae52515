"""Building a FAISS index: which kind, from nothing, and by taking out and adding.

Axes: N vectors, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from damage_atlas.faiss_index import index_bytes, index_from_bytes, on_cpu, on_gpu, one_thread
from damage_atlas.neighbours import Floats
from damage_atlas.parts import MapParts, plan_parts
from damage_atlas.spec import IndexSpec

# FAISS's own lower bound for k-means; fewer, and centroids follow single vectors.
_MIN_PER_LIST = 39
_STAYS_FLAT = 1.25  # times `index.flat_up_to`
_TRAINED_PER_LIST = 64  # more did not raise recall at 1,000,000 vectors
_HNSW_LINKS, _HNSW_BUILD_DEPTH, _HNSW_SEARCH_DEPTH = 32, 200, 128


def choose_kind(vectors: int, spec: IndexSpec, before: str | None = None) -> tuple[str, str]:
    """The kind of index for so many vectors, and the reason: ``flat``, ``ivf`` or ``hnsw``.

    Args:
        before: the kind of the previous version's index. One that is flat stays so for a while beyond the limit, or an
            archive whose size goes up and down about it would build its lists anew time and again.
    """
    if spec.kind == "ivf" and vectors < _MIN_PER_LIST:
        return "flat", f"{vectors} vectors are too few to train ivf on ({_MIN_PER_LIST} at least)"
    if spec.kind != "auto":
        return spec.kind, "as set"
    exact_up_to = max(spec.flat_up_to, _MIN_PER_LIST)
    if before == "flat":
        exact_up_to = int(_STAYS_FLAT * exact_up_to)
    return "flat" if vectors <= exact_up_to else "ivf", f"{vectors:,} vectors; exact search up to {exact_up_to:,}"


def list_count(vectors: int) -> int:
    """How many lists an IVF index of so many vectors gets: about twice the square root, a power of two.

    Then finding the lists and searching one of them cost about the same.
    """
    wanted = 2 ** round(np.log2(2 * np.sqrt(max(vectors, 1))))
    return int(max(1, min(wanted, vectors // _MIN_PER_LIST)))


def new_index(vectors_ND: Floats, kind: str, spec: IndexSpec) -> Any:
    """An empty index of ``kind`` for these vectors; IVF's lists are trained on a sample of them, drawn by seed."""
    count, dimension = vectors_ND.shape
    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _HNSW_BUILD_DEPTH
        index.hnsw.efSearch = _HNSW_SEARCH_DEPTH
        return index
    lists = list_count(count)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = spec.seed
    draw = np.random.default_rng(spec.seed).choice(count, min(count, lists * _TRAINED_PER_LIST), replace=False)
    with one_thread():
        index = on_gpu(index)
        index.train(np.ascontiguousarray(vectors_ND[np.sort(draw)], np.float32))
    return on_cpu(index)


def add_vectors(index: Any, vectors_ND: Floats, rows_per_part: int, map_parts: MapParts) -> None:
    """Add vectors behind those the index has. IVF is filled in shards by ``map_parts`` and merged in their order.

    The shards follow from the number of vectors, so that the number of workers changes no byte of the result.
    """
    if len(vectors_ND) == 0:
        return
    first = index.ntotal
    if not isinstance(index, faiss.IndexIVF):
        # A flat index is a copy of its vectors; HNSW's graph cannot be merged, and depends on the number of threads.
        with one_thread():
            index.add(np.ascontiguousarray(vectors_ND, np.float32))
        return
    shards = [
        Shard(first + part.start, np.ascontiguousarray(vectors_ND[part.rows], np.float32))
        for part in plan_parts(len(vectors_ND), rows_per_part)
    ]
    for filled in map_parts(FillShard(_emptied(index)), shards):
        index.merge_from(index_from_bytes(filled), 0)


def remove_rows(index: Any, gone_N: NDArray[np.bool_]) -> None:
    """Take rows out of a flat or IVF index; the rows that stay move up, in their order."""
    if not gone_N.any():
        return
    index.remove_ids(faiss.IDSelectorBitmap(np.packbits(gone_N, bitorder="little")))
    if isinstance(index, faiss.IndexIVF):
        # Its lists name vectors by number, and still by the old ones.
        row_of_N = np.cumsum(~gone_N) - 1
        for number in range(index.nlist):
            if size := index.invlists.list_size(number):
                named = faiss.rev_swig_ptr(index.invlists.get_ids(number), size)
                named[:] = row_of_N[named]


@dataclass(frozen=True)
class Shard:
    """Vectors that become rows ``first`` and on of the index."""

    first: int
    vectors_ND: Floats


@dataclass(frozen=True)
class FillShard:
    """Fills a copy of an empty, trained IVF index with one shard: the work of one task, picklable."""

    empty: bytes

    def __call__(self, shard: Shard) -> bytes:
        """The filled index, in FAISS's own format."""
        rows = np.arange(shard.first, shard.first + len(shard.vectors_ND))
        with one_thread():
            index = on_gpu(index_from_bytes(self.empty))
            index.add_with_ids(shard.vectors_ND, rows)
        return index_bytes(on_cpu(index))


def _emptied(index: Any) -> bytes:
    empty = faiss.IndexIVFFlat(index.quantizer, index.d, index.nlist, faiss.METRIC_INNER_PRODUCT)
    return index_bytes(empty)

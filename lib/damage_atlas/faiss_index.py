"""A run's FAISS index: reading it guardedly and asking it; shared by index, explain and search.

Axes: N vectors, Q queries, K neighbours, D dimensions. Vectors have unit length, so inner product is cosine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from damage_atlas.errors import ContractError
from damage_atlas.neighbours import Floats, Neighbours
from damage_atlas.store import Run

GPU_LIMIT = 2048  # FAISS's own on a GPU: answers to a query, and lists probed for it
_REBUILD = "Start a new run: it builds the index from the stored vectors."


@dataclass(frozen=True)
class ArchiveIndex:
    """A run's index: row i of ``ids`` (image ids) names vector i of ``faiss_index``."""

    ids: list[str]
    faiss_index: Any

    def vectors(self) -> Floats:
        """All vectors (N x D), in the order of ``ids``; a copy."""
        return np.asarray(self.faiss_index.reconstruct_n(0, len(self.ids)), np.float32)

    def vector(self, row: int) -> Floats:
        """The vector of one row (D)."""
        return np.asarray(self.faiss_index.reconstruct_n(row, 1)[0], np.float32)


def read_index(run: Run) -> ArchiveIndex:
    """The sealed index of a run.

    Raises:
        ContractError: it is missing, or not what was sealed, or does not fit its ids.
    """
    facts = run.artifact("index").facts
    index = load_index(run.read("index", "index.faiss"), facts["dimension"], facts["vectors"])
    ids = run.read_table("index", "ids.parquet")["image_id"].to_pylist()
    if len(ids) != index.ntotal:
        raise ContractError(
            f"{run.uri}: index.faiss holds {index.ntotal} vectors and ids.parquet {len(ids)} ids. {_REBUILD}"
        )
    return ArchiveIndex(ids, index)


def load_index(data: bytes, dimension: int, count: int) -> Any:
    """Read an index whose digest the caller has checked (FAISS files from strangers are not safe to read).

    Raises:
        ContractError: not a whole index, none of the kinds that are built here, or another dimension or count than
            its artifact says.
    """
    try:
        index = index_from_bytes(data)
    except (RuntimeError, MemoryError) as error:
        raise ContractError(f"index.faiss is damaged: FAISS cannot read its {len(data):,} bytes. {_REBUILD}") from error
    if not isinstance(index, faiss.IndexFlatIP | faiss.IndexIVFFlat | faiss.IndexHNSWFlat):
        raise ContractError(f"index.faiss is a {type(index).__name__}, which is never built here. {_REBUILD}")
    if index.d != dimension or index.ntotal != count:
        raise ContractError(
            f"index.faiss holds {index.ntotal} vectors of {index.d} dimensions, its artifact says {count} of "
            f"{dimension}. {_REBUILD}"
        )
    return index


def index_bytes(index: Any) -> bytes:
    """The index in FAISS's own format."""
    return bytes(faiss.serialize_index(index).tobytes())


def index_from_bytes(data: bytes) -> Any:
    """What ``index_bytes`` wrote, unchecked: for bytes that this very process or its workers made."""
    return faiss.deserialize_index(np.frombuffer(data, np.uint8))


def search_index(index: Any, queries_QD: Floats, k: int, among_N: NDArray[np.bool_] | None = None) -> Neighbours:
    """The ``k`` nearest that the index finds for each query; id -1 where it finds fewer.

    Args:
        among_N: search among the rows that are true here alone, and then exactly, whatever the kind of index: an
            approximate search may lose all that match before it looks at them.
    """
    queries = np.ascontiguousarray(queries_QD, np.float32)
    k = min(k, index.ntotal if among_N is None else int(among_N.sum()))
    if k == 0 or len(queries) == 0:
        return Neighbours(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
    if among_N is None:
        similarities, ids = index.search(queries, k)
    else:
        selector = faiss.IDSelectorBitmap(np.packbits(among_N, bitorder="little"))
        if isinstance(index, faiss.IndexIVF):
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=index.nlist)
        else:
            parameters = faiss.SearchParameters(sel=selector)
        # HNSW keeps its vectors in a flat index below the graph.
        searched = index.storage if isinstance(index, faiss.IndexHNSW) else index
        similarities, ids = searched.search(queries, k, params=parameters)
    return Neighbours(ids, similarities)


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS on the calling thread alone, so that the number of cores decides no bit of what it builds."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def on_gpu(index: Any) -> Any:
    """A copy of the index on the first GPU; the index itself where FAISS has none, or cannot hold it there."""
    fits = not isinstance(index, faiss.IndexHNSW) and getattr(index, "nprobe", 1) <= GPU_LIMIT
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index) if has_gpu() and fits else index


def on_cpu(index: Any) -> Any:
    """The CPU's form of what ``on_gpu`` returned: the only form that is stored."""
    return faiss.index_gpu_to_cpu(index) if has_gpu() else index


def has_gpu() -> bool:
    """Whether this FAISS has a GPU to work on; faiss-cpu counts none, and older ones do not count."""
    return hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0

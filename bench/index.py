"""Our IVF index, as `auto` builds it, against exact flat search: 1,000,000 vectors in 16-D, the same threads.

Two archives: unit vectors around 2,000 random directions, as an embedding with clusters has them (noise of length 0.5
beside a direction of length 1), and unit vectors without any structure, the hardest case. Queries are drawn in the
same way and are not in the index.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from bench.timing import compare
from damage_atlas.faiss_index import index_bytes, index_from_bytes
from damage_atlas.index.build import add_vectors, choose_kind, new_index, remove_rows
from damage_atlas.index.measure import Exam, probe_enough
from damage_atlas.neighbours import Floats
from damage_atlas.parts import map_in_threads
from damage_atlas.spec import IndexSpec

_VECTORS, _DIMENSION, _QUERIES, _K = 1_000_000, 16, 500, 10
_DIRECTIONS, _NOISE = 2000, 0.5


def clustered(count: int) -> Floats:
    rng = np.random.default_rng(0)
    directions = to_unit(rng.standard_normal((_DIRECTIONS, _DIMENSION), np.float32))
    noise = rng.standard_normal((count, _DIMENSION), np.float32) * np.float32(_NOISE / np.sqrt(_DIMENSION))
    return to_unit(directions[rng.integers(_DIRECTIONS, size=count)] + noise)


def uniform(count: int) -> Floats:
    return to_unit(np.random.default_rng(1).standard_normal((count, _DIMENSION), np.float32))


def to_unit(vectors_ND: Floats) -> Floats:
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def build(vectors_ND: Floats, spec: IndexSpec) -> Any:
    index = new_index(vectors_ND, choose_kind(len(vectors_ND), spec)[0], spec)
    add_vectors(index, vectors_ND, spec.rows_per_part, map_in_threads)
    return index


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def main() -> None:
    spec = IndexSpec()
    for name, make in (("clustered", clustered), ("without structure", uniform)):
        drawn = make(_VECTORS + _QUERIES)
        vectors, queries = drawn[:_VECTORS], drawn[_VECTORS:]
        flat = faiss.IndexFlatIP(_DIMENSION)
        flat.add(vectors)
        build_s, index = seconds(lambda: build(vectors, spec))  # noqa: B023
        measure_s, sampled = seconds(
            lambda: probe_enough(index, Exam.draw(vectors, spec.recall_sample, _K, spec.seed), spec)  # noqa: B023
        )
        worst = flat.search(queries, _K)[0][:, -1:]
        recall = float((index.search(queries, _K)[0] >= worst - 1e-6).mean())
        print(
            f"index, {_VECTORS:,} vectors {name}: {index.nlist} lists, {index.nprobe} probed, recall@{_K} {recall:.4f} "
            f"on {_QUERIES} new queries ({sampled:.4f} on {spec.recall_sample:,} of its own, without themselves)",
            flush=True,
        )
        compare(
            f"search on {faiss.omp_get_max_threads()} threads, {name}",
            "exact flat",
            lambda: index.search(queries, _K),  # noqa: B023
            lambda: flat.search(queries, _K),  # noqa: B023
            _QUERIES,
            "queries",
        )
        grow_s = grow(vectors, index, spec)
        print(
            f"index, {name}: built in {build_s:.1f} s; 1% taken out and 1% added in {grow_s:.2f} s, "
            f"{grow_s / build_s:.1%} of that; probes chosen and recall measured in {measure_s:.1f} s",
            flush=True,
        )


def grow(vectors_ND: Floats, index: Any, spec: IndexSpec) -> float:
    """Seconds to read the stored index, take out its first 1% and add it again at the end."""
    stored = index_bytes(index)
    gone = np.zeros(len(vectors_ND), bool)
    gone[: len(vectors_ND) // 100] = True

    def work() -> None:
        grown = index_from_bytes(stored)
        remove_rows(grown, gone)
        add_vectors(grown, vectors_ND[gone], spec.rows_per_part, map_in_threads)

    return seconds(work)[0]

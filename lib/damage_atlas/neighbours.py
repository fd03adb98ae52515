"""Exact nearest neighbours by FAISS, and a run's vectors; shared by index, cluster, explain and search.

Axes: N vectors, Q queries, K neighbours, D dimensions. Vectors have unit length, so inner product is cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from damage_atlas.errors import ContractError
from damage_atlas.parts import read_ahead
from damage_atlas.store import Run
from damage_atlas.store.runs import read_output, table_from_bytes

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Neighbours:
    """Neighbours found once and handed on: ids and similarities, both N x K, best first."""

    ids_NK: Ints
    similarities_NK: Floats


def exact_neighbours(vectors_ND: Floats, k: int, queries_QD: Floats | None = None) -> Neighbours:
    """The ``k`` nearest of ``vectors`` for each query, exactly; a query that is itself a vector finds itself.

    Those that are found stand in the order of similarity, equal ones in the order of rows.
    """
    queries = vectors_ND if queries_QD is None else queries_QD
    k = min(k, len(vectors_ND))
    if k == 0 or len(queries) == 0:
        return Neighbours(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
    similarities, ids = faiss.knn(
        np.ascontiguousarray(queries, np.float32),
        np.ascontiguousarray(vectors_ND, np.float32),
        k,
        metric=faiss.METRIC_INNER_PRODUCT,
    )
    order = np.lexsort((ids, -similarities), axis=1)
    return Neighbours(np.take_along_axis(ids, order, 1), np.take_along_axis(similarities, order, 1))


def without_self(neighbours: Neighbours, k: int, rows_N: Ints | None = None) -> Neighbours:
    """Drop each row's own id from neighbours that were searched among themselves, and keep ``k``.

    With identical vectors a row may not be among its own neighbours; then its last one is dropped.

    Args:
        rows_N: the ids of those that were searched for; None for all, in order.
    """
    n, width = neighbours.ids_NK.shape
    own = neighbours.ids_NK == (np.arange(n) if rows_N is None else rows_N)[:, None]
    own[~own.any(axis=1), width - 1] = True
    keep = ~own
    ids = neighbours.ids_NK[keep].reshape(n, width - 1)[:, :k]
    similarities = neighbours.similarities_NK[keep].reshape(n, width - 1)[:, :k]
    return Neighbours(ids, similarities)


def read_vectors(run: Run) -> tuple[list[str], Floats]:
    """The image ids of a run and their vectors (N x D), in the order of ids.

    Raises:
        ContractError: a part is missing or not what was sealed.
    """
    artifact = run.artifact("embed")
    parts = [output for name, output in artifact.outputs.items() if name.startswith("vectors-")]
    tables = list(read_ahead(lambda part: table_from_bytes(read_output(run.store, part)), parts))
    dimension = artifact.facts["dimension"]
    if not tables:
        return [], np.empty((0, dimension), np.float32)
    wanted = set(_embedded_ids(run))
    table = pa.concat_tables(table.replace_schema_metadata(None) for table in tables).sort_by("image_id")
    ids = table["image_id"].to_pylist()
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if len(flat) != len(ids) * dimension or not np.isfinite(flat).all():
        raise ContractError(
            f"{run.uri}: its vectors are not {dimension} finite numbers each. Train the model again, then start a "
            "new run."
        )
    vectors = flat.reshape(-1, dimension)
    # A shared part may hold images of other deliveries as well, and of two parts both may hold one.
    keep = np.array([i in wanted and i != before for before, i in zip([None, *ids], ids, strict=False)], dtype=bool)
    return [image_id for image_id, kept in zip(ids, keep, strict=True) if kept], np.ascontiguousarray(vectors[keep])


def _embedded_ids(run: Run) -> list[str]:
    observations = run.read_table("catalog", "observations.parquet", ["image_id", "status"])
    return list(observations.filter(pc.equal(observations["status"], "ok"))["image_id"].to_pylist())

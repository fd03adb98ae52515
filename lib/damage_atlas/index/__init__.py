"""Index: a FAISS index over a run's vectors, grown from the previous version's; its recall is measured.

build.py      which kind, building in shards, taking out and adding
previous.py   whether the index can grow from the previous version's
measure.py    recall against the exact answer, queries per second, how many lists IVF probes
"""

from __future__ import annotations

import logging
from typing import Any

import faiss
import pyarrow as pa

from damage_atlas.contracts import IDS, Artifact
from damage_atlas.faiss_index import has_gpu, index_bytes
from damage_atlas.index.build import add_vectors, choose_kind, new_index, remove_rows
from damage_atlas.index.measure import Exam, probe_enough
from damage_atlas.index.previous import Growth, growth_from_previous
from damage_atlas.neighbours import Floats, read_vectors
from damage_atlas.parts import MapParts, map_in_threads
from damage_atlas.spec import IndexSpec
from damage_atlas.store import Run

__all__ = ["build_index"]

logger = logging.getLogger(__name__)

_K = 10


def build_index(run: Run, map_parts: MapParts = map_in_threads) -> Artifact:
    """Write ``index.faiss``, the image ids in its order (``ids.parquet``) and what was measured (``recall.json``).

    Args:
        map_parts: fills the shards of an IVF index; the index is the same, byte for byte, whoever fills them.
    """
    stage = run.stage("index")
    if sealed := stage.sealed:
        return sealed
    spec = run.spec.settings.index
    ids, vectors = read_vectors(run)
    previous = run.previous()
    kind, reason = choose_kind(len(ids), spec, previous.artifact("index").facts["kind"] if previous else None)
    growth, origin = growth_from_previous(run, ids, kind)
    if growth is None:
        index = new_index(vectors, kind, spec)
        add_vectors(index, vectors, spec.rows_per_part, map_parts)
        order, kept = ids, 0
    else:
        index, order = _grow(growth, ids, vectors, spec, map_parts)
        kept = len(order) - len(growth.new_ids)
    exam = Exam.draw(vectors, spec.recall_sample, _K, spec.seed)
    recall = probe_enough(index, exam, spec)
    facts = {
        "kind": kind,
        "reason": reason,
        "dimension": int(vectors.shape[1]),
        "vectors": len(order),
        "origin": origin if growth else f"built from nothing: {origin}",
        "rebuilt": growth is None,
        "kept": kept,
        "added": len(order) - kept,
        "removed": int(growth.gone_N.sum()) if growth else 0,
        "changed_since_built": growth.changed if growth else 0,
        "recall_at_10": recall,
        "recall_sample": len(exam.queries_QD),
        "queries_per_second": exam.queries_per_second(index),
        "threads": faiss.omp_get_max_threads(),
        "built_on_gpu": has_gpu() and growth is None and kind == "ivf",
    }
    if isinstance(index, faiss.IndexIVF):
        facts |= {"lists": index.nlist, "lists_probed": index.nprobe}
    logger.info("index: %s (%s), %s; recall@%d %.4f", kind, reason, facts["origin"], _K, recall)
    stage.write("index.faiss", index_bytes(index), len(order))
    stage.write_table("ids.parquet", pa.Table.from_pydict({"image_id": order}, IDS))
    stage.write_json("recall.json", facts)
    return stage.seal(inputs=("catalog", "embed"), counts={"in": len(ids), "out": len(order), "failed": 0}, facts=facts)


def _grow(
    growth: Growth, ids: list[str], vectors_ND: Floats, spec: IndexSpec, map_parts: MapParts
) -> tuple[Any, list[str]]:
    row_of = {image_id: row for row, image_id in enumerate(ids)}
    remove_rows(growth.faiss_index, growth.gone_N)
    new_rows = [row_of[image_id] for image_id in growth.new_ids]
    add_vectors(growth.faiss_index, vectors_ND[new_rows], spec.rows_per_part, map_parts)
    kept = [image_id for image_id, gone in zip(growth.ids, growth.gone_N, strict=True) if not gone]
    return growth.faiss_index, kept + growth.new_ids

"""Index: a FAISS index over a run's vectors, its recall measured against the exact answer."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from damage_atlas.contracts import IDS, Artifact
from damage_atlas.neighbours import build_index as build_faiss_index
from damage_atlas.neighbours import index_bytes, read_vectors, recall
from damage_atlas.parts import MapParts, map_in_threads
from damage_atlas.store import Run

__all__ = ["build_index"]

_K = 10


def build_index(run: Run, map_parts: MapParts = map_in_threads) -> Artifact:
    """Build ``index.faiss`` over the vectors in the order of ``ids.parquet``; measure recall@10 on a sample."""
    stage = run.stage("index")
    if sealed := stage.sealed:
        return sealed
    spec = run.spec.settings.index
    ids, vectors = read_vectors(run)
    kind, reason = spec.kind, "as set"
    if kind == "auto":
        kind = "flat" if len(ids) <= spec.flat_up_to else "hnsw"
        reason = f"{len(ids):,} vectors; exact search up to {spec.flat_up_to:,}"
    index = build_faiss_index(vectors, kind, vectors.shape[1])
    sample = np.random.default_rng(0).permutation(len(ids))[: spec.recall_sample]
    share = recall(index, vectors, vectors[np.sort(sample)], _K)
    stage.write("index.faiss", index_bytes(index), len(ids))
    stage.write_table("ids.parquet", pa.Table.from_pydict({"image_id": ids}, IDS))
    facts = {
        "kind": kind,
        "reason": reason,
        "dimension": int(vectors.shape[1]),
        "vectors": len(ids),
        "recall_at_10": share,
        "recall_sample": len(sample),
    }
    stage.write_json("recall.json", facts)
    return stage.seal(inputs=("catalog", "embed"), counts={"in": len(ids), "out": len(ids), "failed": 0}, facts=facts)

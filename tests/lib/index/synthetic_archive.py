"""Versions of an archive with made-up vectors: catalog, embed and index as their stages seal them, without images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from damage_atlas.contracts import OBSERVATIONS, POINTS, Ledger, VersionRecord, vectors_schema
from damage_atlas.index import build_index
from damage_atlas.parts import MapParts, map_in_threads
from damage_atlas.spec import RunSpec, Settings, with_overrides
from damage_atlas.store import Run, Store, current_version, open_run, publish_version

DIMENSION = 16


def unit_vectors(count: int, seed: int = 0, dimension: int = DIMENSION) -> np.ndarray:
    """Unit vectors around a few dozen directions, as an embedding has them."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(40, dimension))
    vectors = directions[rng.integers(40, size=count)] + 0.5 * rng.normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def vector_of(number: int) -> np.ndarray:
    """The vector of image ``number``: the same in every run."""
    return unit_vectors(1, seed=1000 + number)[0]


def index_version(
    store: Store, numbers: Iterable[int], *overrides: str, model: str = "m@1", map_parts: MapParts = map_in_threads
) -> Run:
    """Open a run over images ``numbers`` on top of the current version, index it, and publish it."""
    previous = current_version(store, "a")
    version = (previous or 0) + 1
    spec = RunSpec(
        run_id=f"run-{version}", kind="recluster", archive="a", images="/images", model="m", model_version="1",
        previous_version=previous, settings=with_overrides(Settings(), list(overrides)),
    )  # fmt: skip
    run = open_run(store, spec)
    seal_vectors(run, {f"{number:06d}": vector_of(number) for number in numbers}, model=model)
    build_index(run, map_parts)
    publish(run)
    return run


def observed_version(store: Store, vectors: dict[str, np.ndarray], seen: list[dict[str, Any]], *overrides: str) -> Run:
    """Publish one version, up to its clusters.

    Args:
        seen: an observation each: image_id, and any of asset_id, label, cluster_id, captured_at, tile_x, ….
    """
    spec = RunSpec(
        run_id="seen", kind="recluster", archive="a", images="/images", model="m", model_version="1",
        settings=with_overrides(Settings(), list(overrides)),
    )  # fmt: skip
    run = open_run(store, spec)
    seal_vectors(run, vectors, seen)
    build_index(run)
    points = [
        {"x": 0.0, "y": 0.0, "role": "core", "confidence": 1.0, "novelty": 0.0, "observation_id": f"o{number}",
         "uri": f"file:///images/{number}.png", **row} for number, row in enumerate(seen)
    ]  # fmt: skip
    cluster = run.stage("cluster")
    cluster.write_table(
        "points.parquet",
        pa.Table.from_pylist([{name: row.get(name) for name in POINTS.names} for row in points], POINTS),
    )
    cluster.seal(("catalog", "embed"), {"in": len(seen), "out": len(seen), "failed": 0})
    publish(run)
    return run


def publish(run: Run) -> None:
    """Make the run the archive's next version."""
    publish_version(
        run.store,
        VersionRecord(
            version=(run.spec.previous_version or 0) + 1, archive="a", run_id=run.spec.run_id, run_key=run.key,
            artifacts={}, ledger=Ledger(), clusters=0, next_cluster_id=1,
        ),
    )  # fmt: skip


def seal_vectors(
    run: Run, vectors: dict[str, np.ndarray], seen: list[dict[str, Any]] | None = None, model: str = "m@1"
) -> None:
    """Seal catalog and embed as if these vectors came from images: one observation each, or those that were seen."""
    rows = [
        {"observation_id": f"o{number}", "uri": f"file:///images/{number}.png", "file": f"{number}.png", "labels": [],
         "status": "ok", **row} for number, row in enumerate(seen or [{"image_id": i} for i in vectors])
    ]  # fmt: skip
    # A quarantined file, so that rows of the catalog and of the points do not run in step.
    rows.insert(0, {"observation_id": "bad", "uri": "file:///bad.png", "file": "bad.png", "labels": [],
                    "status": "quarantined", "reason": "corrupt"})  # fmt: skip
    rows = [{name: row.get(name) for name in OBSERVATIONS.names} for row in rows]
    catalog = run.stage("catalog")
    catalog.write_table("observations.parquet", pa.Table.from_pylist(rows, OBSERVATIONS))
    catalog.seal((), {"in": len(rows), "out": len(rows), "failed": 0})
    embed = run.stage("embed")
    table = pa.Table.from_pylist([{"image_id": i, "vector": v} for i, v in vectors.items()], vectors_schema(DIMENSION))
    embed.write_table("vectors-all.parquet", table)
    facts = {"model": model, "weights_sha256": model, "dimension": DIMENSION}
    embed.seal(("catalog",), {"in": len(vectors), "out": len(vectors), "failed": 0}, facts)

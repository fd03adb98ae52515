"""Versions of an archive with made-up vectors: catalog, embed and index as their stages seal them, without images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from damage_atlas.contracts import OBSERVATIONS, Ledger, VersionRecord, vectors_schema
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
    seal_vectors(run, {f"{number:06d}": vector_of(number) for number in numbers}, model)
    build_index(run, map_parts)
    publish_version(
        store,
        VersionRecord(
            version=version, archive="a", run_id=spec.run_id, run_key=run.key, artifacts={}, ledger=Ledger(),
            clusters=0, next_cluster_id=1,
        ),
    )  # fmt: skip
    return run


def seal_vectors(run: Run, vectors: dict[str, np.ndarray], model: str = "m@1") -> None:
    """Seal catalog and embed as if these vectors came from images, one file each."""
    rows = [
        {"observation_id": f"o{i}", "image_id": i, "uri": f"file:///images/{i}.png", "file": f"{i}.png", "labels": [],
         "status": "ok"} for i in vectors
    ]  # fmt: skip
    catalog = run.stage("catalog")
    catalog.write_table("observations.parquet", pa.Table.from_pylist(rows, OBSERVATIONS))
    catalog.seal((), {"in": len(rows), "out": len(rows), "failed": 0})
    embed = run.stage("embed")
    table = pa.Table.from_pylist([{"image_id": i, "vector": v} for i, v in vectors.items()], vectors_schema(DIMENSION))
    embed.write_table("vectors-all.parquet", table)
    facts = {"model": model, "weights_sha256": model, "dimension": DIMENSION}
    embed.seal(("catalog",), {"in": len(rows), "out": len(rows), "failed": 0}, facts)

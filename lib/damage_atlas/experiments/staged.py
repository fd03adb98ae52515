"""An archive whose vectors are there already: its runs begin with the cluster stage, which is the real one.

For experiments with hundreds of versions, in which decoding and embedding the same images each time would say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from damage_atlas.cluster import cluster_map
from damage_atlas.contracts import OBSERVATIONS, Ledger, ModelCard, VersionRecord, vectors_schema
from damage_atlas.embed.part import part_bytes, part_name
from damage_atlas.neighbours import Floats
from damage_atlas.spec import RunSpec, Settings
from damage_atlas.store import Run, Store, current_version, open_run, publish_version


@dataclass(frozen=True)
class StagedArchive:
    """An archive of a store.

    Attributes:
        card: the model that made the vectors.
    """

    store: Store
    archive: str
    card: ModelCard

    def cluster(self, run_id: str, image_ids: Sequence[str], vectors_ND: Floats, settings: Settings) -> Run:
        """A run of these images on top of the current version, with its cluster stage; taken if it is there."""
        spec = RunSpec(
            run_id=run_id,
            kind="recluster",
            archive=self.archive,
            images="/nowhere",
            model=self.card.model,
            model_version=self.card.version,
            previous_version=current_version(self.store, self.archive),
            settings=settings,
        )
        run = open_run(self.store, spec)
        self._seal(run, image_ids, vectors_ND)
        cluster_map(run)
        return run

    def publish(self, run: Run) -> int:
        """Make the run's clusters the archive's next version."""
        facts = run.artifact("cluster").facts
        record = VersionRecord(
            version=facts["version"],
            archive=self.archive,
            run_id=run.spec.run_id,
            run_key=run.key,
            artifacts={},
            ledger=Ledger(),
            clusters=facts["clusters"],
            next_cluster_id=facts["next_cluster_id"],
        )
        return publish_version(self.store, record).version

    def _seal(self, run: Run, image_ids: Sequence[str], vectors_ND: Floats) -> None:
        counts = {"in": len(image_ids), "out": len(image_ids), "failed": 0}
        catalog = run.stage("catalog")
        if catalog.sealed is None:
            empty = dict.fromkeys(OBSERVATIONS.names)
            rows = [
                empty | {"observation_id": i, "image_id": i, "uri": i, "file": i, "labels": [], "status": "ok"}
                for i in image_ids
            ]
            catalog.write_table("observations.parquet", pa.Table.from_pylist(rows, OBSERVATIONS))
            catalog.seal((), counts)
        embed = run.stage("embed")
        if embed.sealed is None:
            order = np.argsort(np.asarray(image_ids))
            ids = [image_ids[i] for i in order]
            size = vectors_ND.shape[1]
            flat = pa.array(np.ascontiguousarray(vectors_ND[order], np.float32).ravel())
            columns = [pa.array(ids, pa.string()), pa.FixedSizeListArray.from_arrays(flat, size)]
            table = pa.Table.from_arrays(columns, schema=vectors_schema(size))
            embed.write(part_name(ids), part_bytes(table), len(ids))
            embed.seal(("catalog",), counts, _facts(self.card, size))


def _facts(card: ModelCard, dimension: int) -> dict[str, object]:
    model = f"{card.model}@{card.version}"
    return {"dimension": dimension, "model": model, "weights_sha256": card.weights.sha256}

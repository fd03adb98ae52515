"""Seal the embed stage: refuse unless every part is there and every observation is accounted for."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from damage_atlas.contracts import FAILED, Artifact, Ledger, Output
from damage_atlas.embed.part import read_part
from damage_atlas.embed.plan import EmbedPlan
from damage_atlas.embed.work import PartResult
from damage_atlas.errors import ContractError
from damage_atlas.store import Run, Stage
from damage_atlas.store.objects import sha256


def seal_embedding(run: Run, stage: Stage, plan: EmbedPlan, results: list[PartResult]) -> Artifact:
    """Write ``failed.parquet`` and the ledger, and seal.

    Raises:
        ContractError: a part is missing.
    """
    made = {result.output.key: result for result in results}
    lost = [part.key for part in plan.parts if part.key not in made]
    if lost:
        raise ContractError(
            f"{run.uri}: {len(lost)} of {len(plan.parts)} parts of vectors did not come back ({lost[0]}, …). "
            "Rerun the stage: finished parts are kept.",
            retryable=True,
        )
    for key in plan.reused_keys:
        data = run.store.read(key)
        read_part(data, run.store.uri(key))  # nothing is sealed that is not what its maker wrote
        stage.adopt(key.rsplit("/", 1)[1], Output(key=key, sha256=sha256(data), size_bytes=len(data)))
    for key, result in made.items():
        stage.adopt(key.rsplit("/", 1)[1], result.output)
    failed = {row["image_id"]: row for result in results for row in result.failed}
    rows = [{**failed[i], "stage": "embed"} for i in sorted(failed)]
    stage.write_table("failed.parquet", pa.Table.from_pylist(rows, FAILED))

    new = {row["image_id"] for part in plan.parts for row in part.rows}
    ledger = _ledger(run, new, {i: row["reason"] for i, row in failed.items()}).check(run.uri)
    return stage.seal(
        inputs=("catalog", "train") if run.spec.kind == "run" else ("catalog",),
        counts={"in": len(new), "out": len(new) - len(failed), "failed": len(failed)},
        facts={
            "model": f"{plan.card.model}@{plan.card.version}",
            "weights_sha256": plan.card.weights.sha256,
            "dimension": plan.card.network["embedding_size"],
            "parts_made": len(plan.parts),
            "parts_reused": len(plan.reused_keys),
            "images_embedded": len(new) - len(failed),
            "ledger": ledger.model_dump(),
        },
    )


def _ledger(run: Run, new: set[str], failed: dict[str, str]) -> Ledger:
    table = run.read_table("catalog", "observations.parquet").select(["image_id", "status", "reason"])
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    first_seen: set[str] = set()
    for row in table.to_pylist():
        image_id, status = row["image_id"], row["status"]
        if status == "quarantined" or (status == "ok" and image_id in failed):
            counts["quarantined"] += 1
            reasons[row["reason"] or failed[image_id]] += 1
        elif status == "duplicate":
            counts["duplicate"] += 1
        elif image_id in new and image_id not in first_seen:
            first_seen.add(image_id)
            counts["embedded"] += 1
        else:
            counts["reused"] += 1
    return Ledger(listed=table.num_rows, reasons=dict(sorted(reasons.items())), **counts)

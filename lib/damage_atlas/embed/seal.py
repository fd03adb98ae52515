"""Seal the embed stage: refuse unless every part is there and every observation is accounted for."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from damage_atlas.contracts import FAILED, Artifact, Ledger
from damage_atlas.embed.plan import STAYS, EmbedPlan
from damage_atlas.embed.work import PartResult
from damage_atlas.errors import ContractError
from damage_atlas.store import Run, Stage

_MANY = 20  # images: so many at once are the machine's fault, whatever their decoder says


def seal_embedding(run: Run, stage: Stage, plan: EmbedPlan, results: list[PartResult]) -> Artifact:
    """Write ``failed.parquet`` and the ledger, and seal.

    Raises:
        ContractError: a part is missing, or an image.
    """
    made = {result.key: result for result in results}
    lost = [part.key for part in plan.parts if part.key not in made]
    if lost:
        raise ContractError(
            f"{run.uri}: {len(lost)} of {len(plan.parts)} parts of vectors did not come back ({lost[0]}, …). "
            "Rerun the stage: finished parts are kept.",
            retryable=True,
        )
    for part in plan.reused:
        stage.adopt(part.key.rsplit("/", 1)[1], part)
    for result in made.values():
        if result.output is not None:
            stage.adopt(result.output.key.rsplit("/", 1)[1], result.output)
    failed = {row["image_id"]: row for result in made.values() for row in result.failed}
    embedded = sum(result.output.rows or 0 for result in made.values() if result.output is not None)
    if embedded + len(failed) != len(plan.new_ids):
        raise ContractError(
            f"{run.uri}: of {len(plan.new_ids)} new images {embedded} were embedded and {len(failed)} were not. Please "
            "report this; nothing was sealed."
        )
    _refuse_too_many_failed(run, failed, plan.new_ids)
    counts = {"in": len(plan.new_ids), "out": len(plan.new_ids) - len(failed), "failed": len(failed)}
    failed |= {row["image_id"]: row for row in plan.failed_before}
    rows = [{**failed[i], "stage": "embed"} for i in sorted(failed)]
    stage.write_table("failed.parquet", pa.Table.from_pylist(rows, FAILED))

    new = plan.new_ids
    ledger = _ledger(run, new, {i: row["reason"] for i, row in failed.items()}).check(run.uri)
    return stage.seal(
        inputs=("catalog", "train") if run.spec.kind == "run" else ("catalog",),
        counts=counts,
        facts={
            "model": f"{plan.card.model}@{plan.card.version}",
            "weights_sha256": plan.card.weights.sha256,
            "dimension": plan.card.network["embedding_size"],
            "parts_made": len(plan.parts),
            "parts_reused": len(plan.reused),
            "images_embedded": counts["out"],
            "ledger": ledger.model_dump(),
        },
    )


def _refuse_too_many_failed(run: Run, failed: dict[str, dict[str, str]], new: frozenset[str]) -> None:
    share = run.spec.settings.catalog.max_quarantined_share
    # A few that their bytes explain are rows, also where nothing else is new: they would fail in every run.
    unexplained = sum(row["reason"] not in STAYS for row in failed.values())
    if len(failed) <= share * len(new) or (unexplained <= share * len(new) and len(failed) < _MANY):
        return
    reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(row["reason"] for row in failed.values()).items())
    raise ContractError(
        f"{run.uri}: {len(failed)} of {len(new)} new images could be read by the catalog and not any more ({reasons}); "
        f"catalog.max_quarantined_share is {share:g}. Check that {run.spec.images} is mounted, then run embed again.",
        retryable=True,
    )


def _ledger(run: Run, new: frozenset[str], failed: dict[str, str]) -> Ledger:
    columns = ["image_id", "status", "reason"]
    table = run.read_table("catalog", "observations.parquet", columns)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    first_seen: set[str] = set()
    for image_id, status, reason in zip(*(table[name].to_pylist() for name in columns), strict=True):
        if status == "quarantined" or (status == "ok" and image_id in failed):
            counts["quarantined"] += 1
            reasons[reason or failed[image_id]] += 1
        elif status == "duplicate":
            counts["duplicate"] += 1
        elif image_id in new and image_id not in first_seen:
            first_seen.add(image_id)
            counts["embedded"] += 1
        else:
            counts["reused"] += 1
    return Ledger(listed=table.num_rows, reasons=dict(sorted(reasons.items())), **counts)

"""A person decides about an asset of the current version: visit it, defer it, or note that its damage is known."""

from __future__ import annotations

import difflib
from typing import Any, Final, get_args

from damage_atlas.contracts import Decision
from damage_atlas.errors import InputError
from damage_atlas.store import Run, Store, read_version
from damage_atlas.store.decisions import read_decisions, write_decision

DECISIONS: Final[tuple[str, ...]] = get_args(Decision.model_fields["decision"].annotation)


def decide(store: Store, archive: str, asset_id: str, decision: str, decided_by: str, note: str = "") -> dict[str, Any]:
    """Write the decision down; the reports of all later runs show it.

    Args:
        decision: ``visit``, ``defer``, ``known``, or ``none`` to take an earlier one back.

    Returns:
        The record, with its ``number``.

    Raises:
        InputError: no such archive, asset or decision, or nobody is named.
    """
    if decision not in DECISIONS:
        raise InputError(f"{decision!r} is no decision. Choose one of {', '.join(DECISIONS)}.")
    if not decided_by.strip():
        raise InputError("a decision needs a name: who decides? Give --by.")
    record = read_version(store, archive)
    run = Run.load(store.uri(record.run_key))
    assets = set(run.read_table("catalog", "observations.parquet", ["asset_id"])["asset_id"].to_pylist()) - {None}
    if asset_id not in assets:
        close = difflib.get_close_matches(asset_id, sorted(assets), n=1, cutoff=0.5)
        raise InputError(
            f"version {record.version} of {archive} has no asset {asset_id!r}. "
            + (f"Did you mean {close[0]!r}?" if close else f"It has {len(assets)} assets; the report lists them.")
        )
    listed = run.read_table("report", "assets.parquet", ["asset_id", "score"]).to_pylist()
    score = next((row["score"] for row in listed if row["asset_id"] == asset_id), 0.0)
    made = Decision.model_validate(
        {
            "asset_id": asset_id,
            "decision": decision,
            "decided_by": decided_by.strip(),
            "version": record.version,
            "score": score,
            "note": note,
        }
    )
    return {"archive": archive, "number": write_decision(store, archive, made)} | made.model_dump(mode="json")


def decisions(store: Store, archive: str) -> list[dict[str, Any]]:
    """The decisions that hold, the newest first; InputError where the archive has no version."""
    read_version(store, archive)
    made = reversed(read_decisions(store, archive).values())
    return [decision.model_dump(mode="json") for decision in made if decision.decision != "none"]

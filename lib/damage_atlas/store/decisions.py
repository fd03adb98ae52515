"""What people decided about assets: numbered records, put if absent, never edited. The newest of an asset counts."""

from __future__ import annotations

from damage_atlas.contracts import Decision
from damage_atlas.errors import ObjectExistsError
from damage_atlas.store.objects import Store
from damage_atlas.store.runs import read_document
from damage_atlas.store.versions import record_numbers


def last_decision(store: Store, archive: str) -> int:
    """The highest number of the archive's decisions; 0 before the first."""
    return max(record_numbers(store, _folder(archive)), default=0)


def read_decisions(store: Store, archive: str, up_to: int | None = None) -> dict[str, Decision]:
    """Asset -> the newest decision about it, in the order in which they were made.

    Args:
        up_to: leave out records beyond this number.

    Raises:
        ContractError: a record is damaged.
    """
    found: dict[str, Decision] = {}
    for number in record_numbers(store, _folder(archive)):
        if up_to is None or number <= up_to:
            decision = read_document(store, f"{_folder(archive)}/{number:08d}.json", Decision)
            found.pop(decision.asset_id, None)
            found[decision.asset_id] = decision
    return found


def write_decision(store: Store, archive: str, decision: Decision) -> int:
    """Write the decision under the next number and return it."""
    data = decision.model_dump_json(indent=1).encode()
    while True:
        number = last_decision(store, archive) + 1
        try:
            store.create(f"{_folder(archive)}/{number:08d}.json", data)
            return number
        except ObjectExistsError:
            continue  # another decision took the number


def _folder(archive: str) -> str:
    return f"archives/{archive}/decisions"

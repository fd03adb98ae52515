"""The previous version's index: whether this run's can grow from it, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from damage_atlas.errors import ContractError
from damage_atlas.faiss_index import read_index
from damage_atlas.store import Run


@dataclass(frozen=True)
class Growth:
    """How this run's index comes from an earlier one.

    Attributes:
        ids: image ids of the earlier index, in its order.
        gone_N: which of them this run no longer has.
        new_ids: image ids that it has besides, in their order.
        changed: vectors that were added or removed since the index was last built from nothing, this run's included.
    """

    faiss_index: Any
    ids: list[str]
    gone_N: NDArray[np.bool_]
    new_ids: list[str]
    changed: int


def growth_from_previous(run: Run, ids: list[str], kind: str) -> tuple[Growth | None, str]:
    """What to take out of the previous version's index and what to add, and from where; None, and the reason not to.

    Args:
        ids: the image ids of this run.
        kind: of the index that this run wants.
    """
    previous = run.previous()
    if previous is None:
        return None, "there is no earlier version"
    where = f"version {run.spec.previous_version}"
    ours, theirs = run.artifact("embed").facts, previous.artifact("embed").facts
    if (ours["model"], ours["weights_sha256"]) != (theirs["model"], theirs["weights_sha256"]):
        return None, f"{where} is of another model ({theirs['model']})"
    facts = previous.artifact("index").facts
    if (facts["kind"], facts["dimension"]) != (kind, ours["dimension"]):
        return None, f"{where} has another kind of index ({facts['kind']}, {facts['dimension']} dimensions)"
    try:
        old = read_index(previous)
    except ContractError as error:
        return None, f"the index of {where} cannot be used: {error.message}"
    wanted = set(ids)
    gone = np.array([image_id not in wanted for image_id in old.ids], dtype=bool)
    new_ids = sorted(wanted.difference(old.ids))
    # An index that was sealed before anything could grow has no such fact.
    changed = facts.get("changed_since_built", 0) + int(gone.sum()) + len(new_ids)
    limit = run.spec.settings.index.rebuild_above
    if changed > limit * len(ids):
        return None, (
            f"{changed:,} vectors were added or removed since the index of {where} was built from nothing, more than "
            f"{limit:.0%} of {len(ids):,}"
        )
    if kind == "hnsw" and gone.any():
        return None, f"{int(gone.sum()):,} vectors of {where} are gone, and hnsw cannot forget"
    return Growth(old.faiss_index, old.ids, gone, new_ids, changed), f"grown from {where}"

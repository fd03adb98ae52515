"""Damage Atlas: inspection images become a published map on which damage falls into clusters finer than its classes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from damage_atlas.query import search

__all__ = ["search"]

# faiss and openTSNE tell at INFO how they were built and called, in every worker's log.
for _name in ("faiss", "openTSNE"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def __getattr__(name: str) -> Any:
    # Lazily, so that importing a contract never loads torch.
    if name == "search":
        from damage_atlas.query import search

        return search
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

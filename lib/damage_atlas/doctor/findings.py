"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        state: "skipped" where nothing says that the part is used.
        mend: what to do; empty unless the state is "bad".
    """

    check: str
    state: Literal["ok", "bad", "skipped"]
    says: str
    mend: str = ""

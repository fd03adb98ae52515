"""What a time that came with a picture can be relied on for."""

from __future__ import annotations

from datetime import datetime, time
from typing import TypeGuard


def has_time_of_day(taken: datetime | None) -> TypeGuard[datetime]:
    """Whether it says more than the day: manifests often give a date alone, which reads as midnight.

    All pictures of an inspection would pass for one moment otherwise, and twelve of new damage count as one.
    """
    return taken is not None and taken.time() != time.min

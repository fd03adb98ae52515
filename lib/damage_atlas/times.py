"""What a time that came with a picture can be relied on for."""

from __future__ import annotations

from datetime import datetime, time
from typing import Final, TypeGuard

MOMENT_S: Final = 10  # pictures of one asset, or frames of one video, within it show the same


def has_time_of_day(taken: datetime | None) -> TypeGuard[datetime]:
    """Whether it says more than the day: manifests often give a date alone, which reads as midnight.

    All pictures of an inspection would pass for one moment otherwise, and twelve of new damage count as one.
    """
    return taken is not None and taken.time() != time.min

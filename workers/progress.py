"""Progress of a job as metrics of Ray's: its nodes offer them to Prometheus, beside its own."""

from __future__ import annotations

import sys
from typing import Any

from damage_atlas import progress
from damage_atlas.progress import Progress

_TAGS = ("archive", "stage")


def export_progress(archive: str) -> None:
    """Give the progress of this process to Ray, whenever a line of it is logged, while it is connected."""
    gauges: dict[str, Any] = {}

    def tell(seen: Progress) -> None:
        # Not every job needs Ray beyond its start, and importing it takes seconds.
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        if not gauges:
            from ray.util.metrics import Gauge

            for name, text in (
                ("done", "items done"),
                ("wanted", "items in all; 0 where nobody knows"),
                ("bad", "items that cannot be used"),
                ("per_second", "items a second since the start"),
            ):
                gauges[name] = Gauge(f"damage_atlas_progress_{name}", text, tag_keys=_TAGS)
        tags = {"archive": archive, "stage": seen.what}
        for name, value in (
            ("done", seen.done),
            ("wanted", seen.total or 0),
            ("bad", seen.bad),
            ("per_second", seen.rate),
        ):
            gauges[name].set(value, tags)

    progress.observers.append(tell)

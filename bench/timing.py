"""Two ways of doing the same, timed in turn, so that a busy machine slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def compare(
    name: str, peer: str, ours: Callable[[], object], theirs: Callable[[], object], count: int, what: str = "images"
) -> float:
    """Time both in turn, print medians and their ratio, and return it (above 1: ours is faster)."""
    ours(), theirs()  # caches, threads, lazy imports
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(7):
        for who, work in (("ours", ours), ("theirs", theirs)):
            started = time.perf_counter()
            work()
            seconds[who].append(time.perf_counter() - started)
    mine, other = (statistics.median(seconds[who]) for who in ("ours", "theirs"))
    spread = (max(seconds["ours"]) - min(seconds["ours"])) / mine
    print(
        f"{name}: {count / mine:,.0f} {what}/s, {peer}: {count / other:,.0f} {what}/s, "
        f"ratio {other / mine:.2f} (medians of 7, spread {spread:.0%})",
        flush=True,
    )
    return other / mine

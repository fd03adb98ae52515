"""Progress a person can follow: a bar on a terminal, one log line per interval elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

logger = logging.getLogger("damage_atlas")

# Told of a progress whenever a line of it is logged: a worker makes metrics of it.
observers: list[Callable[[Progress], None]] = []

_INTERVAL_S = 10.0
_FIRST_S = 1.0  # whoever watches sees that it goes, and how fast
_REDRAW_S = 0.1


class Progress:
    """Counts done and bad items of a known total; use as a context manager.

    Args:
        what: the stage's word.
        unit: plural noun of the items.
        total: how many there are; None where nobody knows.
    """

    def __init__(self, what: str, unit: str, total: int | None = None, interval_s: float = _INTERVAL_S) -> None:
        self.what, self.unit, self.total, self.interval_s = what, unit, total, interval_s
        self.done = self.bad = 0
        self._started = self._logged = time.monotonic()
        self._log_at = self._started + min(_FIRST_S, interval_s)
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description:<8}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(what, total=total, note=unit)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        else:  # one item may take minutes, and nobody should wonder whether it goes on
            threading.Thread(target=self._speak, name=f"progress of {self.what}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._redraw()
            self._bar.stop()
            return
        with self._lock:  # a line that is being said comes first, and none after the last
            self._ended.set()
            if kind is None and (self.total or self.done):
                self._log()

    def add(self, done: int, bad: int = 0, note: str = "") -> None:
        """Count ``done`` more items, ``bad`` of them bad."""
        self.done += done
        self.bad += bad
        if self._bar is not None:
            if time.monotonic() - self._logged >= _REDRAW_S or self.done == self.total:
                self._logged = time.monotonic()
                self._redraw(note)
        else:
            self._log_if_due(f", {note}" if note else "")

    @property
    def rate(self) -> float:
        """Items a second since the start."""
        return self.done / self._seconds()

    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def _speak(self) -> None:
        while not self._ended.wait(min(_FIRST_S, self.interval_s)):
            self._log_if_due()

    def _log_if_due(self, note: str = "") -> None:
        with self._lock:
            if time.monotonic() >= self._log_at and self.done != self.total and not self._ended.is_set():
                self._log_at = time.monotonic() + self.interval_s
                self._log(note)

    def _log(self, note: str = "") -> None:
        logger.info("%s%s", self, note)
        for observer in observers:
            observer(self)

    def _redraw(self, note: str = "") -> None:
        assert self._bar is not None
        text = f"{self.unit}, {self.bad} bad" if self.bad else self.unit
        self._bar.update(self._task, completed=self.done, total=self.total, note=f"{text} {note}".strip())

    def __str__(self) -> str:
        done, seconds = self.done, self._seconds()  # once: another thread may count on
        rate = done / seconds
        if self.total is None:
            bad = f", {self.bad:,} bad" if self.bad else ""
            return f"{self.what}: {done:,} {self.unit}{bad}, {rate:,.1f}/s"
        told = f"{self.what}: {done:,} of {self.total:,} {self.unit}, {self.bad:,} bad"
        if done >= self.total:
            return f"{told}, {rate:,.1f}/s, took {seconds:,.1f} s"
        return f"{told}, {rate:,.1f}/s, {(self.total - done) / rate:,.0f} s left" if done else told

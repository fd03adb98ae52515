"""Progress without a terminal: a line after a second, one each interval, one at the end."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from damage_atlas import progress
from damage_atlas.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.s)
    monkeypatch.setattr(progress.sys, "stderr", SimpleNamespace(isatty=lambda: False))
    monkeypatch.setattr(Progress, "_speak", lambda shown: None)  # a thread, by the real clock
    return now


def test_lines_come_early_then_at_intervals(clock: SimpleNamespace) -> None:
    seen: list[tuple[float, str]] = []
    progress.observers.append(lambda told: seen.append((clock.s - 100, str(told))))
    try:
        with Progress("embed", "images", 300) as shown:
            for _ in range(60):
                clock.s += 0.5
                shown.add(5, bad=int(shown.done < 10))
    finally:
        progress.observers.pop()
    assert [at for at, _ in seen] == [1.0, 11.0, 21.0, 30.0]
    assert seen[0][1] == "embed: 10 of 300 images, 2 bad, 10.0/s, 29 s left"
    assert seen[-1][1] == "embed: 300 of 300 images, 2 bad, 10.0/s, took 30.0 s"


def test_without_a_total_what_is_bad_is_said(clock: SimpleNamespace) -> None:
    shown = Progress("listing", "names")
    clock.s += 2
    shown.add(10)
    assert str(shown) == "listing: 10 names, 5.0/s"
    shown.add(2, bad=1)
    assert str(shown) == "listing: 12 names, 1 bad, 6.0/s"


def test_what_fails_does_not_say_that_it_is_done(clock: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="damage_atlas"), pytest.raises(KeyError), Progress("x", "y", 3) as shown:
        shown.add(1)
        raise KeyError
    assert caplog.messages == []


def test_one_item_that_takes_long_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys, "stderr", SimpleNamespace(isatty=lambda: False))
    seen: list[str] = []
    twice = threading.Event()

    def tell(told: Progress) -> None:
        seen.append(str(told))
        if len(seen) == 2:
            twice.set()

    progress.observers.append(tell)
    try:
        with Progress("catalog", "files", 3, interval_s=0.01):
            assert twice.wait(20)
        told = len(seen)
        time.sleep(0.2)  # twenty intervals
    finally:
        progress.observers.pop()
    assert seen[0] == "catalog: 0 of 3 files, 0 bad" and len(seen) == told, "the end is told, and nothing after it"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm-256color")
    with Progress("embed", "images", 4) as bar:
        for _ in range(4):
            bar.add(1, bad=1)
    assert "embed" in shown.getvalue() and "4/4" in shown.getvalue() and "images, 4 bad" in shown.getvalue()

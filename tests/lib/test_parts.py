"""Reading ahead: the order stays, requests overlap, and no more is held than is of use."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from damage_atlas.parts import read_ahead


def test_answers_come_in_order_though_they_are_awaited_side_by_side() -> None:
    together = threading.Barrier(4, timeout=30)  # broken, if fewer are asked for at a time

    def read(item: int) -> int:
        if item < 4:  # of later ones, one that is slow might be left alone with fewer than three others
            together.wait()
        return 10 * item

    assert list(read_ahead(read, range(40))) == [10 * item for item in range(40)]


def test_only_some_are_read_ahead() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            asked.append(item)
            yield item

    answers = read_ahead(lambda item: item, items())
    assert next(answers) == 0 and len(asked) < 30
    assert list(answers) == list(range(1, 1000))


def test_what_cannot_be_read_ends_it() -> None:
    asked: list[int] = []

    def read(item: int) -> int:
        asked.append(item)
        if item == 3:
            raise OSError("gone")
        time.sleep(2 * (item > 3))  # long beside what a busy machine holds the other threads up
        return item

    answers = read_ahead(read, range(100))
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(answers)
    assert len(asked) < 17, "what had not begun is not read"
    assert list(read_ahead(read, [])) == []

"""Cutting work into parts, and the simplest way to map a function over them.

A stage plans its parts before any work is done, works them through a ``MapParts`` it is handed, and seals. The library
hands itself threads; ``workers/`` hands in Ray.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

# (function, parts) -> results in the order of parts; function and parts must be picklable.
MapParts: TypeAlias = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]

Item = TypeVar("Item")
Result = TypeVar("Result")

_AT_ONCE = 8  # requests to a store, whose answers are awaited most of the time


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``start + size`` of something that is in a fixed order."""

    number: int
    start: int
    size: int

    @property
    def rows(self) -> slice:
        """The rows as a slice."""
        return slice(self.start, self.start + self.size)


def plan_parts(n_rows: int, rows_per_part: int) -> tuple[Part, ...]:
    """Cut ``n_rows`` into consecutive parts; the last one may be short."""
    starts = range(0, n_rows, rows_per_part)
    return tuple(Part(i, s, min(rows_per_part, n_rows - s)) for i, s in enumerate(starts))


def map_in_threads(function: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
    """Map over as many threads as there are cores: decoding, hashing and torch all release the interpreter lock."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        yield from pool.map(function, parts)


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``read`` of each item, in order: while the caller works on one, some of the next are read."""
    pool = ThreadPoolExecutor(max_workers=_AT_ONCE)
    try:
        begun: deque[Future[Result]] = deque()
        for item in items:
            begun.append(pool.submit(read, item))
            if len(begun) > 2 * _AT_ONCE:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error nobody waits for what has not begun

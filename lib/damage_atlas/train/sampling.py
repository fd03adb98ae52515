"""Class-balanced batches: a pure function of (seed, iteration), so that any worker can make any part of any batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class BalancedBatches:
    """Every batch holds all classes in equal shares; each class is walked through in shuffled rounds.

    Args:
        labels_N: class code of each training image.
        batch_size: images a batch.
        seed: of all draws.
    """

    def __init__(self, labels_N: Ints, batch_size: int, seed: int) -> None:
        self.members = [np.flatnonzero(labels_N == code) for code in np.unique(labels_N)]
        self.batch_size, self.seed = batch_size, seed
        self._rounds: dict[tuple[int, int], Ints] = {}

    def __getitem__(self, iteration: int) -> Ints:
        """Rows of the batch at ``iteration``, class by class in turn (so that each shard is balanced as well)."""
        n_classes = len(self.members)
        # With more classes than places, the classes take turns.
        turns = range(iteration * self.batch_size, (iteration + 1) * self.batch_size)
        return np.array([self._member(turn % n_classes, turn // n_classes) for turn in turns])

    def _member(self, code: int, draw: int) -> int:
        members = self.members[code]
        round_number, position = divmod(draw, len(members))
        key = (code, round_number)
        if key not in self._rounds:
            if len(self._rounds) > 4 * len(self.members):
                self._rounds.clear()
            self._rounds[key] = np.random.default_rng([self.seed, code, round_number]).permutation(members)
        return int(self._rounds[key][position])

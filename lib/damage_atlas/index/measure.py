"""How well and how fast an index answers, measured on a sample of its own vectors; how many lists IVF must probe.

Axes: N vectors, Q queries, K neighbours, D dimensions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from damage_atlas.neighbours import Floats, exact_neighbours
from damage_atlas.spec import IndexSpec

_TOLERANCE = 1e-6  # of a cosine: float32 sums in another order


@dataclass(frozen=True)
class Exam:
    """Queries, each a vector of the index, and how similar their k-th nearest other is."""

    queries_QD: Floats
    worst_Q1: Floats
    k: int

    @classmethod
    def draw(cls, vectors_ND: Floats, queries: int, k: int, seed: int) -> Exam:
        """``queries`` of the vectors, drawn by seed, with the exact answer."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(vectors_ND))[:queries])
        k = max(0, min(k, len(vectors_ND) - 1))
        exact = exact_neighbours(vectors_ND, k + 1, vectors_ND[rows])
        return cls(np.ascontiguousarray(vectors_ND[rows], np.float32), exact.similarities_NK[:, -1:], k)

    def recall(self, index: Any) -> float:
        """Share of the exact ``k`` nearest others that the index finds; equal similarity counts as found.

        That a query finds itself is not counted: a photo that is new to the archive has no such help.
        """
        if self.k == 0 or len(self.queries_QD) == 0:
            return 1.0
        found, _ = index.search(self.queries_QD, self.k + 1)
        others = (found >= self.worst_Q1 - _TOLERANCE).sum(axis=1) - 1
        return float(np.clip(others, 0, None).mean() / self.k)

    def queries_per_second(self, index: Any) -> float | None:
        """Answers a second, all queries at once on FAISS's threads; None without a query."""
        if self.k == 0 or len(self.queries_QD) == 0:
            return None
        started = time.perf_counter()
        index.search(self.queries_QD, self.k)
        return len(self.queries_QD) / (time.perf_counter() - started)


def probe_enough(index: Any, exam: Exam, spec: IndexSpec) -> float:
    """Let IVF probe 1, 2, 4, … lists until its recall is wanted; return the index's recall, of whatever kind it is."""
    if not isinstance(index, faiss.IndexIVF):
        return exam.recall(index)
    index.nprobe = 1
    while (share := exam.recall(index)) < spec.recall_wanted and index.nprobe < index.nlist:
        index.nprobe = min(2 * index.nprobe, index.nlist)
    return share

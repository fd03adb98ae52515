"""Which points the page draws, and in which order.

A map of 200,000 points in one file would neither load nor tell more than a sample does. The sample keeps every
cluster's share of the map, but no cluster below a floor: a new kind of damage is often the smallest cluster.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

MAX_DRAWN_POINTS = 40_000
CLUSTER_FLOOR = 30  # points of a cluster that come before any proportional share


def draw_order(cluster_N: NDArray[np.int64], first: Collection[int]) -> NDArray[np.int64]:
    """Indices of all N points, most wanted first: any prefix is a fair sample.

    Args:
        cluster_N: cluster of each point; noise is one cluster more.
        first: points that come before all others (those whose pictures the report shows).
    """
    n = len(cluster_N)
    shuffled = np.random.default_rng(0).permutation(n)
    rank = np.empty(n, dtype=np.int64)
    size = np.empty(n, dtype=np.int64)
    for cluster in np.unique(cluster_N):
        members = shuffled[cluster_N[shuffled] == cluster]
        rank[members] = np.arange(len(members))
        size[members] = len(members)
    # Within the floor by rank, hence below 0; beyond it by the share of the cluster that is drawn before.
    key = np.where(rank < CLUSTER_FLOOR, rank - CLUSTER_FLOOR, (rank + 0.5) / np.maximum(size, 1))
    key[list(first)] = -np.inf
    return np.argsort(key, kind="stable")

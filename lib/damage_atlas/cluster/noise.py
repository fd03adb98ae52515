"""Noise is a queue: images ranked by how unlike the rest they are, and grouped among themselves.

What DBSCAN calls noise, and members of clusters that are as lonely in the embedding: the map may have drawn them in.
N images, K neighbours, Q images of the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from damage_atlas.cluster.moments import first_of_moment
from damage_atlas.neighbours import Ints, Neighbours

_NEIGHBOUR = 10  # moments: more than a group that DBSCAN rejects has, so that such a group cannot hide itself
_MUTUAL = 4  # nearest images among which two must find each other to be of one group
_SMALLEST_GROUP = 3  # moments
_OF_A_GROUP = 10  # images of a group that are shown at a time: a large one must not hide the rest
_ROWS_AT_ONCE = 50_000  # of neighbours that are looked through
_LONELIEST_SHARE, _LONELIEST = 0.005, 50  # of all images, and at least so many, whatever cluster they are in


@dataclass(frozen=True)
class Queue:
    """Rows of the images in the order in which a person should look at them.

    Attributes:
        unlike_Q: 1 - cosine to the tenth nearest moment.
        group_Q: 1, 2, … for images that lie together, 0 for single ones.
    """

    rows_Q: Ints
    unlike_Q: NDArray[np.float64]
    group_Q: Ints


def queue_noise(ids: Sequence[str], near: Neighbours, labels_N: Ints, moment_N: Ints) -> Queue:
    """Rank the noise, and the loneliest members of clusters.

    An image is the more unlike the rest the farther its tenth nearest moment is (Ramaswamy et al. 2000): up to ten
    looks at one rare kind keep each other no company, and the tiles of one photo none at all. Groups of three moments
    and more, which are no blur or lens cap, and single images take turns, ten of a group at a time: in a large archive
    there are so many of either that nobody would come to the other. Ties go by image_id.

    Args:
        near: of each image without itself, nearest first.
        moment_N: number of the moment that each image shows.
    """
    n, width = near.ids_NK.shape
    if n == 0 or width == 0:
        return Queue(np.zeros(n, np.int64), np.zeros(n), np.zeros(n, np.int64))
    unlike_N = np.concatenate(
        [_unlike(near, moment_N, slice(at, at + _ROWS_AT_ONCE)) for at in range(0, n, _ROWS_AT_ONCE)]
    )
    order = np.lexsort((np.asarray(ids, dtype="S"), -unlike_N))
    loneliest = order[: min(max(_LONELIEST, int(_LONELIEST_SHARE * n)), n // 10)]
    queued = np.zeros(n, bool)
    queued[loneliest] = True
    queued |= labels_N < 0
    rows = order[queued[order]]
    groups, sizes = _group(near.ids_NK[:, : min(_MUTUAL, width)], rows, n)
    mean = np.bincount(groups, weights=unlike_N[rows], minlength=len(sizes)) / np.maximum(sizes, 1)
    moments = np.bincount(np.unique(np.stack([groups, moment_N[rows]], axis=1), axis=0)[:, 0], minlength=len(sizes))
    is_group = moments[groups] >= _SMALLEST_GROUP
    first = np.full(len(sizes), len(rows))
    np.minimum.at(first, groups, np.arange(len(rows)))
    # Turns: some of the best group, the best single image (a group of itself), some of the next group, …
    score = np.where(is_group, mean[groups], unlike_N[rows])
    entry = np.where(is_group, first[groups], np.arange(len(rows)))
    turn = np.zeros(len(rows), np.int64)
    for chosen in (is_group, ~is_group):
        entries = np.stack([-score[chosen], entry[chosen]], axis=1)
        _, rank = np.unique(entries, axis=0, return_inverse=True)
        turn[chosen] = rank.reshape(-1)  # numpy 2.0 gives it another shape
    shown_before = _place_among_equals(groups) // _OF_A_GROUP
    turn += np.where(is_group, shown_before * (turn[is_group].max(initial=0) + 1), 0)
    best = np.lexsort((np.arange(len(rows)), ~is_group, turn))
    number: dict[int, int] = {}
    named = [number.setdefault(int(groups[i]), len(number) + 1) if is_group[i] else 0 for i in best]
    return Queue(rows[best], unlike_N[rows[best]], np.array(named, np.int64))


def _unlike(near: Neighbours, moment_N: Ints, rows: slice) -> NDArray[np.float64]:
    """1 - cosine to the tenth nearest moment, or to the farthest image that is known where fewer moments are."""
    counted = first_of_moment(moment_N[near.ids_NK[rows]], moment_N[rows])
    enough = np.cumsum(counted, axis=1) >= _NEIGHBOUR
    place = np.where(enough.any(axis=1), enough.argmax(axis=1), enough.shape[1] - 1)
    similarities = near.similarities_NK[rows][np.arange(len(place)), place]
    return np.maximum(1 - similarities.astype(np.float64), 0)


def _place_among_equals(values_N: Ints) -> Ints:
    """0, 1, 2, … for each value's occurrences in turn."""
    order = np.argsort(values_N, kind="stable")
    _, first, counts = np.unique(values_N[order], return_index=True, return_counts=True)
    place = np.empty(len(values_N), np.int64)
    place[order] = np.arange(len(values_N)) - np.repeat(first, counts)
    return place


def _group(near_NK: Ints, rows_Q: Ints, n: int) -> tuple[Ints, Ints]:
    """Component of each queued image under mutual neighbourhood, and the components' sizes."""
    place = np.full(n, -1, np.int64)
    place[rows_Q] = np.arange(len(rows_Q))
    to = place[near_NK[rows_Q]]
    from_row, column = np.nonzero(to >= 0)
    q = len(rows_Q)
    knows = csr_matrix((np.ones(len(from_row)), (from_row, to[from_row, column])), shape=(q, q))
    _, groups = connected_components(knows.minimum(knows.T), directed=False)
    return groups.astype(np.int64), np.bincount(groups, minlength=1)

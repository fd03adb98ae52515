"""Which images a batch holds: pure functions of (seed, iteration), so that any worker can make any part of any batch.

Axes: N training images, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from damage_atlas.errors import InputError

Ints = NDArray[np.int64]

_TUPLE_STREAM, _CLASS_STREAM = 0x7E5, 0xC1A  # keep these draws apart from those of the rounds


class BalancedBatches:
    """Every batch holds all classes in equal shares; each class is walked through in shuffled rounds.

    Where there are too many for each to have two images, as many as can have them take turns, in shuffled rounds as
    well: an image without another one of its class would teach nothing.

    Args:
        labels_N: class code of each training image.
        batch_size: images a batch.
        seed: of all draws.
    """

    pairs = None  # all of them count

    def __init__(self, labels_N: Ints, batch_size: int, seed: int) -> None:
        self.members = [np.flatnonzero(labels_N == code) for code in np.unique(labels_N)]
        self.batch_size, self.seed = batch_size, seed
        self._rounds = _Rounds(self.members, seed)

    def __getitem__(self, iteration: int) -> Ints:
        """Rows of the batch at ``iteration``, class by class in turn (so that each shard is balanced as well)."""
        n_classes = len(self.members)
        if n_classes > max(self.batch_size // 2, 1):
            return self._some_classes(iteration)
        turns = range(iteration * self.batch_size, (iteration + 1) * self.batch_size)
        return np.array([self._rounds.member(turn % n_classes, turn // n_classes) for turn in turns])

    def _some_classes(self, iteration: int) -> Ints:
        shown = max(self.batch_size // 2, 1)
        each = -(-self.batch_size // shown)
        places = [divmod(iteration * shown + place, len(self.members)) for place in range(shown)]
        orders = {turn: self._class_order(turn) for turn, _ in places}
        return np.array(
            [
                self._rounds.member(int(orders[turn][place]), turn * each + copy)
                for copy in range(each)
                for turn, place in places
            ][: self.batch_size]
        )

    def _class_order(self, turn: int) -> Ints:
        return np.random.default_rng([self.seed, turn, _CLASS_STREAM]).permutation(len(self.members))


class ExplicitTuples:
    """The paper's batches (section 2.1): an anchor, M - 1 positives, one negative from each of N - 1 other classes.

    Classes take turns as the anchor's; each is walked through in shuffled rounds. A class with fewer than M images
    shows some of its positives again (changed differently each time); one with a single image gives negatives only.
    With fewer classes than N there are as many negatives as other classes; an anchor that has fewer of them than others
    have shows some classes again. Each time the loss's means keep the meaning of M and N.

    Args:
        labels_N: class code of each training image.
        batch_size: images a batch may hold; ``self.batch_size`` is what whole tuples fill of it.
        seed: of all draws.
        m, n: the paper's M and N, the anchor included.
        shards: parts of a batch; a tuple lies in one of them.
        apart_CC: which classes may be each other's negatives; None for all others.

    Attributes:
        class_order: for each class the others, hardest first, C x (C - 1); its first N - 1 are then the classes of
            the negatives. None draws them.
        pairs: places in the batch of anchors and their positives, and of anchors and their negatives.

    Raises:
        InputError: a tuple does not fit into a shard, or no class has two images and a class to tell them from.
    """

    def __init__(
        self,
        labels_N: Ints,
        batch_size: int,
        seed: int,
        *,
        m: int,
        n: int,
        shards: int = 1,
        apart_CC: NDArray[np.bool_] | None = None,
    ) -> None:
        self.members = [np.flatnonzero(labels_N == code) for code in np.unique(labels_N)]
        self.seed = seed
        self.apart_CC = ~np.eye(len(self.members), dtype=bool) if apart_CC is None else apart_CC
        others_C = self.apart_CC.sum(axis=1)
        self.anchor_classes = [code for code, members in enumerate(self.members) if len(members) > 1 and others_C[code]]
        if not self.anchor_classes:
            raise InputError(
                "tuples need two images of one class, and an image of another one, which shares no label with it where "
                "train.multi_label is set."
            )
        self.n_positives, self.n_negatives = m - 1, min(n - 1, int(others_C[self.anchor_classes].max()))
        size = 1 + self.n_positives + self.n_negatives
        self.tuples = batch_size // shards // size * shards
        if not self.tuples:
            raise InputError(
                f"a tuple of M = {m} and N = {n} takes {size} images, a shard has {batch_size // shards}: raise "
                "train.batch_size, or lower train.m, train.n or train.shards."
            )
        self.batch_size = self.tuples * size
        self.class_order: Ints | None = None
        self._rounds = _Rounds(self.members, seed)
        anchors_T1 = np.arange(0, self.batch_size, size)[:, None]
        positives_TM = anchors_T1 + 1 + np.arange(self.n_positives)
        negatives_TN = anchors_T1 + 1 + self.n_positives + np.arange(self.n_negatives)
        self.pairs: tuple[Ints, Ints, Ints, Ints] = (
            np.repeat(anchors_T1, self.n_positives),
            positives_TM.ravel(),
            np.repeat(anchors_T1, self.n_negatives),
            negatives_TN.ravel(),
        )

    def __getitem__(self, iteration: int) -> Ints:
        """Rows of the batch at ``iteration``: tuple after tuple, each with its anchor, positives and negatives."""
        turns = range(iteration * self.tuples, (iteration + 1) * self.tuples)
        return np.concatenate([self._tuple(turn) for turn in turns])

    def _tuple(self, turn: int) -> Ints:
        draw, place = divmod(turn, len(self.anchor_classes))
        code = self.anchor_classes[place]
        anchor = self._rounds.member(code, draw)
        rng = np.random.default_rng([self.seed, turn, _TUPLE_STREAM])
        others = rng.permutation(self.members[code][self.members[code] != anchor])
        positives = np.resize(others, self.n_positives)
        if self.class_order is None:
            classes = rng.permutation(np.flatnonzero(self.apart_CC[code]))
        else:
            classes = self.class_order[code][self.apart_CC[code, self.class_order[code]]]
        negatives = [rng.choice(self.members[other]) for other in np.resize(classes, self.n_negatives)]
        return np.array([anchor, *positives, *negatives])


def hardest_first(means_CD: NDArray[np.floating]) -> Ints:
    """For each class the others, by falling cosine of their mean embeddings: C x (C - 1).

    A class whose images lie near the anchor's is hard to keep apart from it.
    """
    unit_CD = means_CD / np.maximum(np.linalg.norm(means_CD, axis=1, keepdims=True), 1e-12)
    cosines_CC = unit_CD @ unit_CD.T
    np.fill_diagonal(cosines_CC, np.inf)
    # Stable: equal cosines must not be ordered differently on another worker.
    return np.argsort(-cosines_CC, axis=1, kind="stable")[:, 1:]


class _Rounds:
    """Walks through the members of each class in shuffled rounds."""

    def __init__(self, members: list[Ints], seed: int) -> None:
        self.members, self.seed = members, seed
        self._orders: dict[tuple[int, int], Ints] = {}

    def member(self, code: int, draw: int) -> int:
        """The row that class ``code`` gives at its ``draw``-th turn."""
        round_number, place = divmod(draw, len(self.members[code]))
        key = (code, round_number)
        order = self._orders.get(key)
        if order is None:
            order = np.random.default_rng([self.seed, code, round_number]).permutation(self.members[code])
            if len(self._orders) > 4 * len(self.members):
                self._orders.clear()
            self._orders[key] = order
        return int(order[place])

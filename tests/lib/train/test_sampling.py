"""Batches are functions of (seed, iteration), and hold what they promise, however small the classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage_atlas.errors import InputError
from damage_atlas.train.sampling import BalancedBatches, ExplicitTuples, hardest_first

CLASS_SIZES = st.lists(st.integers(1, 6), min_size=2, max_size=6).filter(lambda sizes: max(sizes) > 1)


def labels_of(sizes: list[int]) -> np.ndarray:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(0).permutation(labels)


def test_balanced_batches_are_what_they_were() -> None:
    """Runs that were started earlier go on with the batches they had."""
    batches = BalancedBatches(np.array([0, 0, 0, 1, 1, 2]), 7, seed=3)
    assert [batches[i].tolist() for i in (0, 1, 7)] == [
        [2, 3, 5, 1, 4, 5, 0],
        [3, 5, 2, 4, 5, 0, 3],
        [4, 5, 0, 3, 5, 2, 4],
    ]


@given(CLASS_SIZES, st.integers(2, 20), st.integers(0, 5))
@settings(deadline=None)
def test_balanced_batches_hold_equal_shares(sizes: list[int], batch_size: int, iteration: int) -> None:
    labels = labels_of(sizes)
    counts = np.bincount(labels[BalancedBatches(labels, batch_size, 0)[iteration]], minlength=len(sizes))
    assert counts.sum() == batch_size
    if len(sizes) <= batch_size // 2:
        assert counts.max() - counts.min() <= 1
    assert (counts[counts > 0] >= 2).all(), "an image alone of its class has no positive"


@pytest.mark.parametrize("batch_size", [16, 17])
def test_more_classes_than_a_batch_holds_take_turns_in_pairs(batch_size: int) -> None:
    labels = labels_of([6] * 100)
    batches = BalancedBatches(labels, batch_size, 0)
    drawn = [batches[iteration] for iteration in range(100)]
    for rows in drawn:
        assert len(rows) == batch_size and (np.unique(labels[rows], return_counts=True)[1] >= 2).all()
    shown = np.bincount(labels[np.concatenate(drawn)])
    assert len(shown) == 100 and shown.max() <= 1.5 * shown.min()
    if batch_size == 16:  # three whole rounds
        assert len(set(np.concatenate(drawn[:37]).tolist())) >= 590
    together = {frozenset(labels[rows].tolist()) for rows in drawn[:13]} & {
        frozenset(labels[rows].tolist()) for rows in drawn[13:26]
    }
    assert not together, "the same classes meet again and again"


@given(CLASS_SIZES, st.integers(2, 5), st.integers(2, 8), st.integers(0, 50), st.integers(1, 3), st.booleans())
@settings(deadline=None)
def test_a_tuple_is_an_anchor_its_positives_and_other_classes(
    sizes: list[int], m: int, n: int, iteration: int, shards: int, hard: bool
) -> None:
    labels = labels_of(sizes)
    batches = ExplicitTuples(labels, 36, 7, m=m, n=n, shards=shards)
    if hard:
        batches.class_order = hardest_first(np.random.default_rng(0).standard_normal((len(sizes), 4)))
    rows = batches[iteration]
    negatives = min(n, len(sizes)) - 1
    size = m + negatives
    assert len(rows) == batches.batch_size <= 36 and len(rows) % (size * shards) == 0
    for anchor, *others in rows.reshape(-1, size):
        near, far = others[: m - 1], others[m - 1 :]
        assert set(labels[near]) == {labels[anchor]} and anchor not in near
        assert len(set(near)) == min(m, sizes[labels[anchor]]) - 1, "none shown twice while there are others"
        assert labels[anchor] not in labels[far] and len(set(labels[far])) == negatives == len(far)
    assert np.array_equal(rows, batches[iteration])


def test_negatives_share_no_label_with_the_anchor() -> None:
    """Classes a, a+b, b, c: the mix tells itself from c alone, which it then shows twice."""
    label_sets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]])
    apart = label_sets @ label_sets.T == 0
    labels = labels_of([5, 5, 5, 5])
    for order in (None, hardest_first(np.random.default_rng(1).standard_normal((4, 3)))):
        batches = ExplicitTuples(labels, 64, 0, m=2, n=4, apart_CC=apart)
        batches.class_order = order
        assert batches.n_negatives == 3, "c is apart from three"
        for anchor, _, *far in (row for i in range(4) for row in batches[i].reshape(-1, 5)):
            assert all(apart[labels[anchor], labels[row]] for row in far)
            assert set(labels[far]) == set(np.flatnonzero(apart[labels[anchor]]))


def test_an_image_without_negatives_is_no_anchor() -> None:
    apart = np.array([[False, False, False], [False, False, True], [False, True, False]])
    batches = ExplicitTuples(labels_of([5, 5, 5]), 12, 0, m=2, n=3, apart_CC=apart)
    assert batches.anchor_classes == [1, 2] and batches.n_negatives == 1
    with pytest.raises(InputError, match=r"train\.multi_label"):
        ExplicitTuples(labels_of([5, 1, 1]), 12, 0, m=2, n=3, apart_CC=apart)


def test_pairs_name_the_places_of_the_tuples() -> None:
    batches = ExplicitTuples(labels_of([4, 4, 4]), 10, 0, m=3, n=3)
    assert [places.tolist() for places in batches.pairs] == [[0, 0, 5, 5], [1, 2, 6, 7], [0, 0, 5, 5], [3, 4, 8, 9]]


def test_every_image_of_a_class_becomes_an_anchor_once_a_round() -> None:
    labels = labels_of([3, 3])
    batches = ExplicitTuples(labels, 12, 0, m=2, n=2)  # four tuples
    anchors = np.concatenate([batches[i][::3] for i in range(3)])
    assert sorted(anchors) == sorted([*range(6)] * 2)


def test_the_seed_decides() -> None:
    labels = labels_of([9, 9, 9])
    one, same, other = (ExplicitTuples(labels, 30, seed, m=3, n=2)[4] for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_hard_classes_are_those_with_the_nearest_means() -> None:
    means = np.array([[1.0, 0.0], [0.9, 0.3], [-1.0, 0.1], [0.0, 2.0]])
    order = hardest_first(means)
    assert order.tolist() == [[1, 3, 2], [0, 3, 2], [3, 1, 0], [1, 2, 0]]
    labels = labels_of([5, 5, 5, 5])
    batches = ExplicitTuples(labels, 40, 0, m=2, n=2)
    batches.class_order = order
    tuples = labels[batches[3]].reshape(-1, 3)
    assert {(int(row[0]), int(row[2])) for row in tuples} == {(code, int(order[code, 0])) for code in range(4)}


def test_classes_without_a_direction_are_ordered_as_well() -> None:
    assert hardest_first(np.zeros((3, 2))).tolist() == [[1, 2], [0, 2], [0, 1]]


@pytest.mark.parametrize(
    ("sizes", "m", "batch_size", "shards", "message"),
    [
        ([1, 1], 2, 12, 1, "two images of one class"),
        ([4], 2, 12, 1, "an image of another one"),
        ([4, 4], 9, 8, 1, r"M = 9 and N = 4 takes 10 images, a shard has 8: raise train\.batch_size"),
        ([4, 4], 4, 8, 2, "a shard has 4"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    sizes: list[int], m: int, batch_size: int, shards: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ExplicitTuples(labels_of(sizes), batch_size, 0, m=m, n=4, shards=shards)

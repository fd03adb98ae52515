"""The queue of noise: rare groups and lonely images first, in the same order whatever the order of rows."""

from __future__ import annotations

import numpy as np
import pytest

from damage_atlas.cluster.noise import Queue, queue_noise
from damage_atlas.neighbours import exact_neighbours, without_self


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def archive(rare: int, junk: int, each: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Three large groups, ``rare`` images of one other kind, and ``junk`` images that are like nothing; 0 to 4."""
    rng = np.random.default_rng(3)
    kinds = np.repeat([0, 1, 2, 3, 4], [each, each, each, rare, junk])
    centres = np.eye(16)[np.minimum(kinds, 3)]
    vectors = centres + rng.normal(0, 0.08, (len(kinds), 16))
    vectors[kinds == 4] = rng.normal(0, 1, (junk, 16))
    return unit(vectors), kinds


def queue_of(
    vectors: np.ndarray, labels: np.ndarray, ids: list[str] | None = None, moments: np.ndarray | None = None
) -> Queue:
    near = without_self(exact_neighbours(vectors, 91), 90) if len(vectors) > 1 else exact_neighbours(vectors, 0)
    return queue_noise(
        ids or [f"i{k:04d}" for k in range(len(vectors))],
        near,
        labels,
        np.arange(len(vectors)) if moments is None else moments,
    )


@pytest.mark.parametrize("drawn_in", [False, True])
def test_five_rare_images_come_first_as_a_group(drawn_in: bool) -> None:
    """Also where the map has drawn them into a cluster, so that DBSCAN calls them no noise."""
    vectors, kinds = archive(rare=5, junk=12)
    labels = np.where(kinds < 3, kinds, -1)
    if drawn_in:
        labels[kinds == 3] = 1
    queue = queue_of(vectors, labels)
    assert set(np.flatnonzero(kinds == 3)) <= set(queue.rows_Q[:12].tolist())
    groups = queue.group_Q[np.isin(queue.rows_Q, np.flatnonzero(kinds == 3))]
    assert groups.min() > 0 and len(set(groups.tolist())) == 1
    assert set(np.flatnonzero(labels < 0)) <= set(queue.rows_Q.tolist()), "all noise is in the queue"
    singles = queue.unlike_Q[queue.group_Q == 0]
    assert (np.diff(singles) <= 1e-12).all(), "single images by falling distance"


def test_groups_and_single_images_take_turns() -> None:
    """Forty rare groups must not hide the one image that is like nothing at all."""
    rng = np.random.default_rng(5)
    centres = unit(rng.normal(size=(40, 64)))
    groups = np.repeat(centres, 5, axis=0) + rng.normal(0, 0.01, (200, 64))
    large = np.repeat(unit(rng.normal(size=(3, 64))), 800, axis=0) + rng.normal(0, 0.02, (2400, 64))
    vectors = unit(np.concatenate([groups, rng.normal(size=(6, 64)), large]))
    labels = np.where(np.arange(len(vectors)) < 206, -1, 1)
    queue = queue_of(vectors, labels)
    single = np.flatnonzero(queue.group_Q == 0)
    assert len(set(queue.group_Q.tolist())) == 41
    assert single[:6].tolist() == [5, 11, 17, 23, 29, 35], "a group of five, a single image, and so on"
    assert set(queue.rows_Q[single[:6]].tolist()) == set(range(200, 206))


def test_a_large_group_hides_nothing() -> None:
    rng = np.random.default_rng(6)
    steps = np.cumsum(rng.normal(0, 0.02, (300, 64)), axis=0) + 3 * np.eye(64)[0]  # a chain of mutual neighbours
    large = np.repeat(unit(rng.normal(size=(2, 64))), 900, axis=0) + rng.normal(0, 0.02, (1800, 64))
    vectors = unit(np.concatenate([steps, rng.normal(size=(4, 64)), large]))
    queue = queue_of(vectors, np.where(np.arange(len(vectors)) < 304, -1, 1))
    assert np.bincount(queue.group_Q)[1:].max() > 40
    places = np.flatnonzero(np.isin(queue.rows_Q, np.arange(300, 304)))
    assert places[0] <= 10 and (np.diff(places) <= 11).all()


def test_tiles_of_one_photo_are_no_group_and_no_company() -> None:
    vectors, kinds = archive(rare=5, junk=10)
    twelve = unit(np.eye(16)[7] + np.random.default_rng(1).normal(0, 0.05, (12, 16)))
    vectors, kinds = np.concatenate([vectors, twelve]), np.r_[kinds, np.full(12, 5)]
    labels, moments = np.where(kinds < 3, kinds, -1), np.where(kinds == 5, 10_000, np.arange(len(kinds)))
    queue = queue_of(vectors, labels, moments=moments)
    group = {int(kinds[row]) for row, g in zip(queue.rows_Q, queue.group_Q, strict=True) if g}
    assert 3 in group and 5 not in group
    of_photo = queue.unlike_Q[np.isin(queue.rows_Q, np.flatnonzero(kinds == 5))]
    assert of_photo.min() > 0.5, "its own tiles are no neighbours"


def test_the_order_of_rows_changes_nothing() -> None:
    vectors, kinds = archive(rare=5, junk=10)
    labels = np.where(kinds < 3, kinds, -1)
    ids = [f"i{k:04d}" for k in range(len(vectors))]
    plain = queue_of(vectors, labels, ids)
    order = np.random.default_rng(0).permutation(len(ids))
    mixed = queue_of(vectors[order], labels[order], [ids[i] for i in order])
    assert [ids[row] for row in plain.rows_Q] == [ids[order[row]] for row in mixed.rows_Q]
    assert plain.group_Q.tolist() == mixed.group_Q.tolist()


@pytest.mark.parametrize("n", [0, 1, 2, 9, 10, 11, 40])
@pytest.mark.parametrize("noise", [False, True])
def test_few_images(n: int, noise: bool) -> None:
    vectors = unit(np.random.default_rng(n).normal(size=(n, 16)))
    queue = queue_of(vectors, np.full(n, -1 if noise else 0))
    assert len(queue.rows_Q) == len(set(queue.rows_Q.tolist())) == (n if noise and n > 1 else n // 10 if n > 1 else n)
    assert np.isfinite(queue.unlike_Q).all()


def test_identical_images() -> None:
    queue = queue_of(np.repeat(unit(np.ones((1, 16))), 30, axis=0), np.full(30, -1))
    assert len(queue.rows_Q) == 30 and np.abs(queue.unlike_Q).max() < 1e-6

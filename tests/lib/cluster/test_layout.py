"""A map that keeps its meaning: old points stay, new ones join them, what is unlike lies apart, refits are turned."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score

from damage_atlas.cluster.density import dbscan_clusters
from damage_atlas.cluster.layout import Layout, OldMap, align, lay_out, movement
from damage_atlas.cluster.radius import choose_eps
from damage_atlas.neighbours import exact_neighbours, without_self
from damage_atlas.spec import ClusterSpec

SPEC = ClusterSpec(map_iterations=400)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def grouped(n: int, groups: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around ``groups`` of the 16 axes, and which."""
    rng = np.random.default_rng(seed)
    group = rng.integers(groups, size=n)
    return unit(np.eye(16)[group] + rng.normal(0, 0.08, (n, 16))), group


def laid_out(vectors: np.ndarray, old: OldMap | None = None, spec: ClusterSpec = SPEC) -> Layout:
    near = without_self(exact_neighbours(vectors, 91), 90)
    return lay_out(vectors, near, spec, old)


def with_new(positions: np.ndarray, new: int) -> np.ndarray:
    return np.concatenate([positions.astype(np.float64), np.full((new, 2), np.nan)])


def test_old_points_stay_and_new_ones_lie_among_their_kind() -> None:
    vectors, group = grouped(420)
    first = laid_out(vectors[:400])
    assert (first.how, first.changed) == ("fitted", 0)
    second = laid_out(vectors, OldMap(with_new(first.positions_N2, 20), gone=3, changed=4))
    assert (second.how, second.changed) == ("placed", 27)
    assert (second.positions_N2[:400] == first.positions_N2).all() and second.moved_share == 0
    nearest = cdist(second.positions_N2[400:], second.positions_N2[:400]).argmin(axis=1)
    assert (group[:400][nearest] == group[400:]).mean() >= 0.95


def test_ten_deliveries_leave_the_first_points_where_they_were() -> None:
    vectors, group = grouped(330)
    layout = laid_out(vectors[:200])
    first = layout.positions_N2
    for end in range(213, 331, 13):
        old = OldMap(with_new(layout.positions_N2, end - len(layout.positions_N2)), changed=layout.changed)
        layout = laid_out(vectors[:end], old, SPEC.model_copy(update={"refit_above": 1.0, "seed": end}))
        assert layout.how == "placed"
    assert (layout.positions_N2[:200] == first).all()
    labels = dbscan_clusters(layout.positions_N2, choose_eps(layout.positions_N2, 10).eps, 10).labels_N
    assert adjusted_rand_score(group[: len(labels)], labels) > 0.9


@pytest.mark.parametrize("count", [1, 3, 12, 40])
def test_what_is_unlike_all_lies_in_no_old_cluster(count: int) -> None:
    vectors, _ = grouped(400)
    first = laid_out(vectors)
    eps = choose_eps(first.positions_N2, 10).eps
    old_labels = dbscan_clusters(first.positions_N2, eps, 10).labels_N
    rng = np.random.default_rng(1)
    strange = unit(np.eye(16)[[9] * count] - 0.5 * np.eye(16)[[2] * count] + rng.normal(0, 0.05, (count, 16)))
    second = laid_out(np.concatenate([vectors, strange]), OldMap(with_new(first.positions_N2, count)))
    assert second.how == "placed" and second.unlike_N[400:].all() and not second.unlike_N[:400].any()
    labels = dbscan_clusters(second.positions_N2, eps, 10).labels_N
    with_strange = {label for label in labels[400:].tolist() if label >= 0}
    with_old = set(labels[:400][old_labels >= 0].tolist())
    assert not with_strange & with_old
    if count >= 12:
        assert len(with_strange) == 1 and (labels[400:] >= 0).all(), "a new kind is a cluster of its own"


def test_two_unlike_kinds_do_not_share_a_place() -> None:
    vectors, _ = grouped(400)
    first = laid_out(vectors)
    strange = unit(np.repeat(np.eye(16)[[9, 12]], 12, axis=0) + np.random.default_rng(1).normal(0, 0.05, (24, 16)))
    second = laid_out(np.concatenate([vectors, strange]), OldMap(with_new(first.positions_N2, 24)))
    labels = dbscan_clusters(second.positions_N2, choose_eps(first.positions_N2, 10).eps, 10).labels_N
    assert len(set(labels[400:412])) == len(set(labels[412:])) == 1 and labels[400] != labels[412]


def test_new_points_that_are_like_old_ones_are_not_called_unlike() -> None:
    vectors, _ = grouped(600)
    first = laid_out(vectors[:400])
    assert laid_out(vectors, OldMap(with_new(first.positions_N2, 200))).unlike_N.mean() < 0.02


@pytest.mark.parametrize(
    ("old", "because"),
    [
        (OldMap(np.zeros((0, 2)), refit="cluster.refit asks for it"), "asks for it"),
        (OldMap(np.zeros((0, 2)), changed=400), "came or went"),
        (OldMap(np.zeros((0, 2)), gone=400), "came or went"),
    ],
)
def test_a_map_is_fitted_again_when_asked_or_when_much_has_changed(old: OldMap, because: str) -> None:
    vectors, _ = grouped(420)
    first = laid_out(vectors[:400])
    turned = first.positions_N2 @ np.array([[0.0, 1.0], [1.0, 0.0]])  # as if the earlier map had been mirrored
    old = OldMap(with_new(turned, 20), old.gone, old.changed, old.refit)
    second = laid_out(vectors, old)
    assert second.how == "fitted again" and because in second.why and second.changed == 0
    for axis in range(2):
        assert np.corrcoef(turned[:, axis], second.positions_N2[:400, axis])[0, 1] > 0.9
    assert second.moved_share == movement(second.positions_N2, old.positions_N2) > 0


def test_a_map_of_something_else_is_fitted_again() -> None:
    vectors, _ = grouped(200)
    first = laid_out(vectors)
    others = unit(np.random.default_rng(2).normal(0, 1, (60, 16)))
    assert "unlike" in laid_out(np.concatenate([vectors, others]), OldMap(with_new(first.positions_N2, 60))).why


@pytest.mark.parametrize("left", [0, 1, 7])
def test_of_too_small_an_earlier_map_nothing_is_kept(left: int) -> None:
    vectors, _ = grouped(60)
    start = np.full((60, 2), np.nan)
    start[:left] = np.random.default_rng(0).normal(size=(left, 2))
    spec = SPEC.model_copy(update={"refit_above": 100.0})
    assert f"{left} images are left" in laid_out(vectors, OldMap(start), spec).why


def test_an_earlier_map_without_extent_is_fitted_again() -> None:
    vectors, _ = grouped(60)
    layout = laid_out(vectors, OldMap(np.zeros((60, 2))))
    assert layout.how == "fitted again" and np.ptp(layout.positions_N2, axis=0).min() > 1


def test_nothing_new_is_the_same_map() -> None:
    vectors, _ = grouped(100)
    first = laid_out(vectors)
    again = laid_out(vectors, OldMap(first.positions_N2.astype(np.float64)))
    assert again.how == "placed" and (again.positions_N2 == first.positions_N2).all()


def test_placing_is_repeatable() -> None:
    vectors, _ = grouped(130)
    old = OldMap(with_new(laid_out(vectors[:100]).positions_N2, 30))
    assert (laid_out(vectors, old).positions_N2 == laid_out(vectors, old).positions_N2).all()


@pytest.mark.parametrize("mirrored", [1.0, -1.0])
def test_alignment_undoes_turns_flips_and_shifts_but_keeps_the_scale(mirrored: float) -> None:
    rng = np.random.default_rng(3)
    old = rng.normal(0, 10, (50, 2))
    turn = np.array([[np.cos(2), -np.sin(2)], [np.sin(2), np.cos(2)]]) @ np.diag([1.0, mirrored])
    back = align((old @ turn + [30.0, -4.0]).astype(np.float32), old)
    assert np.abs(back - old).max() < 1e-4
    twice = align((2 * old @ turn).astype(np.float32), old)
    assert np.isclose(np.ptp(twice, axis=0), 2 * np.ptp(old, axis=0), rtol=1e-4).all()

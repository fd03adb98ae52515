"""Archives larger than the map: landmarks cover rare kinds, all others follow, and the price is said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree
from sklearn.metrics import adjusted_rand_score

from damage_atlas.cluster import map_and_cluster
from damage_atlas.cluster.landmarks import check_memory, choose_landmarks, estimate_memory, redraw_because
from damage_atlas.cluster.layout import OldMap
from damage_atlas.errors import InputError
from damage_atlas.neighbours import exact_neighbours
from damage_atlas.spec import ClusterSpec

SPEC = ClusterSpec(landmarks=1000, map_iterations=300)
ALL = SPEC.model_copy(update={"landmarks": 1_000_000})


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def archive(n: int, rare: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Five groups of falling size, then a rare one."""
    rng = np.random.default_rng(seed)
    group = np.concatenate([rng.choice(5, n - rare, p=[0.4, 0.3, 0.15, 0.1, 0.05]), np.full(rare, 7)])
    return unit(np.eye(16)[group] + rng.normal(0, 0.1, (n, 16))), group


def test_up_to_the_limit_all_images_are_on_the_map() -> None:
    vectors, _ = archive(300)
    assert choose_landmarks(vectors, SPEC).tolist() == list(range(300))


@pytest.mark.parametrize("seed", range(3))
def test_a_rare_kind_is_on_the_map_as_a_whole(seed: int) -> None:
    vectors, group = archive(6000, rare=12, seed=seed)
    landmarks = choose_landmarks(vectors, SPEC.model_copy(update={"seed": seed}))
    assert len(landmarks) == 1000 and (np.diff(landmarks) > 0).all()
    assert set(np.flatnonzero(group == 7)) <= set(landmarks.tolist())
    assert (np.bincount(group[landmarks])[:5] > 25).all()


def test_landmarks_stay_and_new_images_add_their_share() -> None:
    vectors, _ = archive(4000)
    first = choose_landmarks(vectors[:3600], SPEC)
    was, new = np.isin(np.arange(4000), first), np.arange(4000) >= 3600
    second = choose_landmarks(vectors, SPEC, was, new)
    added = np.setdiff1d(second, first)
    assert set(first) <= set(second) and len(added) == 100 and (added >= 3600).all()
    assert len(choose_landmarks(vectors, SPEC, np.arange(4000) < 1600, new)) == 1000, "too many are drawn anew"


@pytest.mark.parametrize("new", [0, 1])
def test_a_run_that_brings_next_to_nothing_keeps_the_landmarks(new: int) -> None:
    vectors, _ = archive(1500 + new)
    was = np.zeros(1500 + new, bool)
    was[choose_landmarks(vectors[:1500], SPEC)] = True
    found = choose_landmarks(vectors, SPEC, was, np.arange(1500 + new) >= 1500)
    assert set(np.flatnonzero(was)) <= set(found.tolist()) and len(found) == 1000 + new


def test_landmarks_that_are_drawn_anew_need_a_new_map() -> None:
    """Else the places of all others, means over their neighbours, would be taken for places on the map."""
    few, placed = np.arange(3000) < 900, np.arange(3000) < 2800
    assert redraw_because(few, placed, SPEC) == ""
    assert "1,501 landmarks" in redraw_because(np.arange(3000) < 1501, placed, SPEC)
    assert "0 landmarks" in redraw_because(np.zeros(3000, bool), placed, SPEC)
    assert "all 3,000 images" in redraw_because(few, placed, ALL)
    assert redraw_because(placed, placed, ALL) == "", "there were no landmarks"


def test_the_others_follow_their_neighbours() -> None:
    vectors, group = archive(5000, rare=12)
    mapped = choose_landmarks(vectors, SPEC)
    layout, _, found = map_and_cluster(vectors, mapped, SPEC, None)
    assert (found.positions_N2[mapped] == layout.positions_N2).all()
    _, _, full = map_and_cluster(vectors, np.arange(5000), ALL, None)
    # The maps of two processors differ, so the bounds are those of several seeds, with room: agreement where both
    # find a cluster was 0.96 and more, the share of those rows 0.95 and more.
    both, either = (op(full.labels_N >= 0, found.labels_N >= 0) for op in (np.logical_and, np.logical_or))
    assert adjusted_rand_score(full.labels_N[both], found.labels_N[both]) > 0.9
    assert both.sum() > 0.9 * either.sum()
    assert adjusted_rand_score(group, found.labels_N) > 0.9 and 0 < found.disagreement < 0.1
    rare = found.labels_N[group == 7]
    assert len(set(rare)) == 1 and rare[0] >= 0 and (found.labels_N == rare[0]).sum() < 20
    rest = np.setdiff1d(np.arange(5000), mapped)
    assert {found.roles[row] for row in rest} <= {"border", "noise"}
    assert np.isin(found.near.ids_NK, mapped).all() and found.near.ids_NK.shape == (5000, 10)
    expected = exact_neighbours(vectors[mapped], 10, vectors[rest[:50]])
    assert (found.near.ids_NK[rest[:50]] == mapped[expected.ids_NK]).all()
    inside = found.labels_N[rest] >= 0
    for label in range(found.labels_N.max() + 1):
        box = found.positions_N2[mapped][found.labels_N[mapped] == label]
        own = found.positions_N2[rest[inside & (found.labels_N[rest] == label)]]
        assert (own >= box.min(axis=0) - 1e-3).all() and (own <= box.max(axis=0) + 1e-3).all()


def test_what_no_landmark_is_like_belongs_nowhere() -> None:
    vectors, _ = archive(3000)
    strange = unit(np.eye(16)[[12]])
    together = np.concatenate([vectors, strange])
    _, _, found = map_and_cluster(together, choose_landmarks(vectors, SPEC), SPEC, None)
    assert found.labels_N[-1] == -1 and found.roles[-1] == "noise"
    others = found.positions_N2[:-1]
    gap = np.linalg.norm(others - found.positions_N2[-1], axis=1).min()
    to_next = cKDTree(others).query(others, k=2)[0][:, 1]
    assert gap > np.quantile(to_next, 0.99), "it lies among images that it is unlike"


def test_an_archive_that_grows_beyond_the_limit_keeps_all_that_was_on_the_map() -> None:
    vectors, _ = archive(1300)
    was = np.arange(1300) < 700
    found = choose_landmarks(vectors, SPEC, was, ~was)
    assert set(np.flatnonzero(was)) <= set(found.tolist()) and 1000 <= len(found) < 1300


def test_landmarks_that_left_the_archive_are_made_up_for() -> None:
    vectors, _ = archive(3000)
    was, new = np.arange(3000) < 850, np.arange(3000) >= 2800  # by its share alone, the delivery would add 67
    assert len(choose_landmarks(vectors, SPEC, was, new)) == 1000
    assert "799 landmarks" in redraw_because(np.arange(3000) < 799, np.arange(3000) < 2800, SPEC)


def test_on_a_kept_map_every_old_image_stays() -> None:
    vectors, _ = archive(3000)
    first = choose_landmarks(vectors[:2900], SPEC)
    _, _, before = map_and_cluster(vectors[:2900], first, SPEC, None)
    old = np.full((3000, 2), np.nan)
    old[:2900] = before.positions_N2
    was = np.isin(np.arange(3000), first)
    second = choose_landmarks(vectors, SPEC, was, np.isnan(old[:, 0]))
    layout, _, after = map_and_cluster(vectors, second, SPEC, OldMap(old, landmark_N=was))
    assert layout.how == "placed" and (after.positions_N2[:2900] == before.positions_N2).all()


def test_memory_is_estimated_and_bounded() -> None:
    assert estimate_memory(1_000_000, 100_000, 16, ClusterSpec()) < 8 * 2**30
    assert estimate_memory(20_000, 20_000, 16, ClusterSpec()) < estimate_memory(40_000, 40_000, 16, ClusterSpec())
    with pytest.raises(InputError, match=r"Lower cluster\.landmarks"):
        check_memory(5_000_000, 2_000_000, 16, ClusterSpec(landmarks=2_000_000))

"""Confidence: clusters that are there come back and hold together; those that chance or the map made do not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score

from damage_atlas.cluster import confidence
from damage_atlas.cluster.confidence import (
    CONFIDENT,
    Confidence,
    density_validity,
    explained_by,
    measure_confidence,
    silhouette,
)
from damage_atlas.cluster.density import find_clusters
from damage_atlas.cluster.tsne import make_map
from damage_atlas.neighbours import exact_neighbours, without_self
from damage_atlas.parts import map_in_threads
from damage_atlas.spec import ClusterSpec

SPEC = ClusterSpec(map_iterations=300, resamples=3)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def grouped(n: int, groups: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    group = rng.integers(groups, size=n)
    return unit(np.eye(16)[group] + rng.normal(0, 0.1, (n, 16))), group


def near_ids(vectors: np.ndarray, k: int = 10) -> np.ndarray:
    return without_self(exact_neighbours(vectors, k + 1), k).ids_NK


def measured(
    vectors: np.ndarray, labels: np.ndarray, spec: ClusterSpec = SPEC, photos: list[str | None] | None = None
) -> Confidence:
    photos = photos or [None] * len(vectors)
    return measure_confidence(vectors, near_ids(vectors), labels, photos, spec, map_in_threads)


def test_groups_that_are_there_come_back_and_hold_together() -> None:
    vectors, group = grouped(500)
    found = measured(vectors, group)
    assert (found.reappears_C >= 0.8).all() and (found.cohesion_C > 0.9).all() and found.agreement > 0.8
    assert (found.confidence_C == np.minimum(found.reappears_C, found.cohesion_C)).all()


def test_a_cluster_that_no_resample_holds_is_judged_by_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """All its images are of one photo, which every draw leaves out."""
    vectors, group = grouped(300)
    monkeypatch.setattr(confidence, "_draw", lambda *_: np.flatnonzero(group != 4))
    found = measured(vectors, group)
    assert np.isnan(found.reappears_C).tolist() == [False, False, False, False, True]
    assert found.confidence_C[4] == found.cohesion_C[4] > 0.9


def test_photos_are_numbered_in_the_order_of_their_names() -> None:
    names = ["b", None, "\u00e4", "a", "b", "\U0001f600", "a" * 300]
    assert confidence._codes(names).tolist() == [2, -1, 3, 0, 2, 4, 1]


def test_groups_that_are_not_there_do_not() -> None:
    """One group cut in two at random, and one that was only ever drawn together on paper."""
    vectors, group = grouped(500)
    rng = np.random.default_rng(1)
    labels = group.copy()
    labels[(group == 0) & (rng.random(500) < 0.5)] = 5
    labels[(group == 4)] = np.where(rng.random((group == 4).sum()) < 0.15, 6, 4)
    found = measured(vectors, labels)
    assert found.cohesion_C[[0, 5, 6]].max() < CONFIDENT < found.confidence_C[[1, 2, 3]].min()
    assert found.reappears_C[6] == 0


@pytest.mark.parametrize(("n", "seed"), [(300, 0), (800, 1)])
def test_uniform_vectors_have_no_cluster_above_the_limit(n: int, seed: int) -> None:
    vectors = unit(np.random.default_rng(seed).normal(size=(n, 16)))
    near = without_self(exact_neighbours(vectors, 91), 90)
    labels = find_clusters(make_map(vectors, near, SPEC), vectors, SPEC).labels_N
    assert (measured(vectors, labels).confidence_C < CONFIDENT).all()


@pytest.mark.parametrize("method", ["hdbscan", "kmeans"])
def test_uniform_vectors_have_none_by_other_methods(method: str) -> None:
    spec = ClusterSpec.model_validate({"method": method, "map_iterations": 300, "resamples": 3})
    vectors = unit(np.random.default_rng(3).normal(size=(600, 16)))
    near = without_self(exact_neighbours(vectors, 91), 90)
    labels = find_clusters(make_map(vectors, near, spec), vectors, spec).labels_N
    assert (measured(vectors, labels, spec).confidence_C < CONFIDENT).all()


def test_it_is_repeatable_and_does_not_depend_on_threads() -> None:
    vectors, group = grouped(200)
    photos: list[str | None] = [f"p{i // 4}" for i in range(200)]
    one = measure_confidence(
        vectors, near_ids(vectors), group, photos, SPEC, lambda function, parts: map(function, parts)
    )
    two = measured(vectors, group, SPEC, photos)
    assert (one.reappears_C == two.reappears_C).all() and one.agreement == two.agreement


def test_a_cluster_of_one_photo_is_gone_where_the_photo_is_and_does_not_count_there() -> None:
    vectors, group = grouped(400)
    photos: list[str | None] = [f"p{i}" for i in range(400)]
    strange = unit(np.eye(16)[[12] * 30] + np.random.default_rng(1).normal(0, 0.05, (30, 16)))
    found = measured(
        np.concatenate([vectors, strange]), np.concatenate([group, np.full(30, 5)]), SPEC, [*photos, *["one"] * 30]
    )
    assert found.reappears_C[5] >= 0.8


def test_of_a_large_archive_a_sample_keeps_rare_clusters() -> None:
    vectors, group = grouped(2000)
    rare = unit(np.eye(16)[[12] * 20] + np.random.default_rng(1).normal(0, 0.05, (20, 16)))
    spec = SPEC.model_copy(update={"resample_points": 400, "resamples": 3})
    found = measured(np.concatenate([vectors, rare]), np.concatenate([group, np.full(20, 5)]), spec)
    assert (found.reappears_C >= 0.6).all()


def test_without_resamples_cohesion_alone_counts() -> None:
    vectors, group = grouped(100)
    found = measured(vectors, group, SPEC.model_copy(update={"resamples": 0}))
    assert np.isnan(found.reappears_C).all() and np.isnan(found.agreement)
    assert (found.confidence_C == found.cohesion_C).all()


def test_cohesion_against_plain_loops() -> None:
    vectors, group = grouped(60, 3)
    labels = np.where(np.arange(60) % 7 == 0, -1, group)
    near = near_ids(vectors)
    found = measure_confidence(vectors, near, labels, [None] * 60, ClusterSpec(resamples=0), map_in_threads)
    for cluster in range(3):
        own = [i for i in range(60) if labels[i] == cluster]
        share = sum(labels[j] == cluster for i in own for j in near[i]) / (len(own) * 10)
        by_size = (len(own) - 1) / 59
        assert np.isclose(found.cohesion_C[cluster], max((share - by_size) / (1 - by_size), 0))


@pytest.mark.parametrize("n", [0, 1, 9, 10])
def test_few_points_and_no_clusters(n: int) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(n, 16))) if n else np.zeros((0, 16), np.float32)
    near = near_ids(vectors) if n > 1 else np.zeros((n, 0), np.int64)
    for labels in (np.full(n, -1), np.zeros(n, np.int64)):
        found = measure_confidence(vectors, near, labels, [None] * n, SPEC, map_in_threads)
        assert len(found.confidence_C) == labels.max(initial=-1) + 1
        assert silhouette(vectors, labels) is None


def test_one_cluster_of_everything_holds_together_against_nothing() -> None:
    vectors = unit(np.eye(16)[[0] * 80] + np.random.default_rng(0).normal(0, 0.05, (80, 16)))
    assert measured(vectors, np.zeros(80, np.int64)).confidence_C.tolist() == [0]


def test_what_an_asset_explains_is_marked() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 100)
    classes: list[str | None] = ["crack" if label == 0 else "spalling" for label in labels]
    assets: list[str | None] = ["pier" if label == 1 else f"deck {rng.integers(5)}" for label in labels]
    alone: list[str | None] = [f"f{i}" for i in range(300)]
    overall, marks = explained_by(labels, classes, {"asset": assets, "photo": alone, "delivery": ["d1"] * 300})
    assert marks == [None, "asset", None] and set(overall) == {"asset", "class"}
    assert np.isclose(overall["class"], adjusted_mutual_info_score(classes, labels))


@pytest.mark.parametrize("assets", [6, 50, 400])
def test_what_one_of_many_assets_explains_is_marked_as_well(assets: int) -> None:
    rng = np.random.default_rng(0)
    asset = rng.integers(0, assets, 20 * assets)
    labels = np.where(asset == 3, 1, 0)
    labels[rng.permutation(np.flatnonzero(asset != 3))[: len(labels) // 50]] = 2
    classes: list[str | None] = ["crack" if label == 2 or n % 3 else "spalling" for n, label in enumerate(labels)]
    named: list[str | None] = [None if code == 0 else f"pier {code}" for code in asset]
    assert explained_by(labels, classes, {"asset": named})[1][1:] == ["asset", None]


def test_what_has_no_asset_is_not_explained_by_that() -> None:
    labels = np.repeat([0, 1], [90, 10])
    named: list[str | None] = [None if label else f"pier {n % 4}" for n, label in enumerate(labels)]
    assert explained_by(labels, ["crack"] * 100, {"asset": named})[1] == [None, None]
    named[-1] = "pier 1"  # fewer of them here than elsewhere
    assert explained_by(labels, ["crack"] * 100, {"asset": named})[1] == [None, None]


def test_the_best_value_is_what_scikit_learn_says_of_two_sides() -> None:
    rng = np.random.default_rng(1)
    member, codes = rng.random(500) < 0.2, rng.integers(-1, 5, 500)
    codes[member & (rng.random(500) < 0.6)] = 2
    wanted = adjusted_mutual_info_score(codes == 2, member)
    assert confidence._best_value(member, codes) == pytest.approx(wanted, rel=1e-9)
    many = np.resize(np.arange(3), 600_000)
    assert confidence._best_value(many == 1, np.where(np.arange(600_000) % 30 == 0, 0, many)) > 0.8
    assert confidence._best_value(member, np.zeros(500, int)) == 0
    assert confidence._best_value(np.ones(500, bool), codes) == 0
    assert confidence._best_value(member, np.full(500, -1)) == 0


def test_without_images_nothing_is_explained() -> None:
    assert explained_by(np.zeros(0, np.int64), [], {"asset": []}) == ({}, [])


def test_density_validity_tells_groups_from_cuts_and_bears_what_is_odd() -> None:
    rng = np.random.default_rng(0)
    positions = np.concatenate([rng.normal(10 * n, 1, (1500, 2)) for n in range(3)]).astype(np.float32)
    groups = np.repeat(np.arange(3), 1500)
    valid = density_validity(positions, groups)
    cut = density_validity(positions, rng.integers(0, 3, 4500))
    noisy = density_validity(positions, np.where(groups == 2, -1, groups))
    assert valid is not None and cut is not None and noisy is not None
    assert valid > 0.7 and cut < -0.5 and 0.4 < noisy < valid
    assert density_validity(positions, np.where(groups == 0, 0, -1)) is None
    assert density_validity(positions[:6], np.array([0, 0, 1, 1, 2, 2])) is None, "pairs"
    together = density_validity(np.repeat(positions[::1500], 20, axis=0), np.repeat(np.arange(3), 20))
    assert together is None or together > 0.9
    assert density_validity(np.zeros((0, 2), np.float32), np.zeros(0, int)) is None


def test_a_cluster_of_a_dozen_can_come_back() -> None:
    """A resample keeps nine of its eleven images, and DBSCAN wants ten of the whole."""
    vectors, group = grouped(500)
    few = unit(np.eye(16)[[9]] + np.random.default_rng(3).normal(0, 0.05, (11, 16)))
    spec = SPEC.model_copy(update={"resamples": 6, "map_iterations": 500})
    found = measured(np.concatenate([vectors, few]), np.append(group, np.full(11, 5)), spec)
    assert found.reappears_C[5] >= confidence.REAPPEARS_AS_ITSELF


def test_what_is_known_of_every_cluster_is_brought_up_to_date_by_a_few_resamples() -> None:
    vectors, group = grouped(300)
    made: list[list[int]] = []

    def counted(function, parts):  # type: ignore[no-untyped-def]
        made.append([part.number for part in parts])
        return map(function, parts)

    def measure(before: dict[int, float] | None, earlier_rounds: int = 0) -> Confidence:
        spec = SPEC.model_copy(update={"resamples": 6, "resamples_kept": 2})
        return measure_confidence(
            vectors, near_ids(vectors), group, [None] * 300, spec, counted, before, earlier_rounds
        )

    known = measure(dict.fromkeys(range(5), 0.3), earlier_rounds=2)
    assert made[-1] == [16, 17], "in three nights all six, so that eps is the larger and the smaller one as well"
    came_back = (known.reappears_C - 0.3 * 4 / 6) * 6  # of the two
    assert came_back == pytest.approx(came_back.round()) and came_back.max() == pytest.approx(2)
    whole = measure({label: 0.3 for label in range(4)}, earlier_rounds=1)
    assert (whole.reappears_C > 0.6).all() and made[-1] == [6, 7, 8, 9, 10, 11], "of one nothing is known"
    assert (measure(None).reappears_C > 0.6).all() and len(made[-1]) == 6

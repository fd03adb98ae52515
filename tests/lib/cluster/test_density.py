"""Clusters on the map: DBSCAN as scikit-learn has it, a radius without labels, bridges cut in the embedding."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score

from damage_atlas.cluster.density import FoundClusters, dbscan_clusters, find_clusters, split_clusters
from damage_atlas.cluster.radius import choose_eps
from damage_atlas.spec import ClusterSpec


def blobs(*sizes: int, apart: float = 20.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = [(i * apart, (i % 2) * apart) for i in range(len(sizes))]
    points = [rng.normal(centre, 1.0, (n, 2)) for centre, n in zip(centres, sizes, strict=True)]
    return np.concatenate(points).astype(np.float32), np.repeat(np.arange(len(sizes)), sizes)


def test_cores_and_noise_are_those_of_scikit_learn() -> None:
    points = np.random.default_rng(1).uniform(0, 30, (400, 2)).astype(np.float32)
    found = dbscan_clusters(points, 1.5, 5)
    theirs = DBSCAN(eps=1.5, min_samples=5).fit(points)
    core = np.zeros(len(points), bool)
    core[theirs.core_sample_indices_] = True
    assert [role == "core" for role in found.roles] == core.tolist()
    assert ((found.labels_N < 0) == (theirs.labels_ < 0)).all()
    assert adjusted_rand_score(theirs.labels_[core], found.labels_N[core]) == 1.0


def test_clusters_are_numbered_by_falling_size() -> None:
    points, truth = blobs(20, 60, 40)
    found = dbscan_clusters(points, 2.0, 5)
    sizes = np.bincount(found.labels_N[found.labels_N >= 0])
    assert list(sizes) == sorted(sizes, reverse=True) and len(sizes) == 3
    assert adjusted_rand_score(truth, found.labels_N) > 0.95


@pytest.mark.parametrize("case", ["none", "one", "nine", "ten alike", "all noise", "one giant", "two far groups"])
def test_degenerate_maps(case: str) -> None:
    rng = np.random.default_rng(2)
    points, clusters, noise = {
        "none": (np.empty((0, 2)), 0, 0),
        "one": (np.zeros((1, 2)), 0, 1),
        "nine": (np.zeros((9, 2)), 0, 9),
        "ten alike": (np.zeros((10, 2)), 1, 0),
        "all noise": (np.arange(80.0).reshape(40, 2) * 100, 0, 40),
        "one giant": (rng.normal(0, 1, (500, 2)), 1, None),
        "two far groups": (np.repeat([[0.0, 0.0], [1e6, 1e6]], 15, axis=0), 2, 0),
    }[case]
    points = points.astype(np.float32)
    found = dbscan_clusters(points, 2.0, 10)
    again = split_clusters(found, points, np.eye(4, dtype=np.float32)[np.arange(len(points)) % 4], 2.0, 10, 0.5)
    for result in (found, again):
        assert len(result.labels_N) == len(result.roles) == len(points)
        assert result.labels_N.max(initial=-1) + 1 == clusters
        assert noise is None or int((result.labels_N < 0).sum()) == noise
    assert choose_eps(points, 10).eps > 0


def test_the_knee_lies_between_the_distances_inside_and_outside() -> None:
    points, _ = blobs(150, 150)
    scattered = np.random.default_rng(3).uniform(-40, 60, (20, 2)).astype(np.float32)
    eps = choose_eps(np.concatenate([points, scattered]), 10).eps
    assert 0.5 < eps < 8


def bridged(n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Two dense groups with a few points between them, which DBSCAN at eps 2 takes for one."""
    rng = np.random.default_rng(4)
    left, right = rng.normal((0, 0), 1, (n, 2)), rng.normal((9, 0), 1, (n, 2))
    bridge = np.stack([np.linspace(2, 7, 12), rng.normal(0, 0.3, 12)], axis=1)
    side = np.repeat([0, 1], [n + 6, n + 6])
    points = np.concatenate([left, bridge[:6], right, bridge[6:]]).astype(np.float32)
    return points, side


def test_a_bridge_between_groups_that_are_apart_in_the_embedding_is_cut() -> None:
    points, side = bridged()
    found = dbscan_clusters(points, 2.0, 5)
    assert found.labels_N.max() == 0
    vectors = np.eye(3, dtype=np.float32)[side] + np.random.default_rng(5).normal(0, 0.05, (len(side), 3))
    split = split_clusters(found, points, vectors.astype(np.float32), 2.0, 5, 0.5)
    assert split.labels_N.max() == 1 and adjusted_rand_score(side, split.labels_N) > 0.95
    assert ((split.labels_N < 0) == (found.labels_N < 0)).all() and split.roles == found.roles


def test_groups_that_are_alike_in_the_embedding_stay_one() -> None:
    points, _ = bridged()
    vectors = np.random.default_rng(6).normal(0, 1, (len(points), 3)).astype(np.float32)
    found = dbscan_clusters(points, 2.0, 5)
    assert split_clusters(found, points, vectors, 2.0, 5, 0.5).labels_N.tolist() == found.labels_N.tolist()


def test_a_small_part_of_a_very_large_cluster_is_no_accident() -> None:
    rng = np.random.default_rng(7)
    points = np.concatenate([rng.normal(0, 1, (6000, 2)), rng.normal((6, 0), 0.1, (12, 2))]).astype(np.float32)
    vectors = np.eye(2, dtype=np.float32)[(np.arange(6012) >= 6000).astype(int)]
    one = FoundClusters(np.zeros(6012, np.int64), ["core"] * 6012)
    assert len(split_clusters(one, points, vectors, 4.0, 5, 0.5).labels_N) == 6012
    assert len(split_clusters(one, points, vectors, 1e-6, 1, 0.5).labels_N) == 6012


METHODS = [ClusterSpec(method="dbscan"), ClusterSpec(method="paper"), ClusterSpec(method="hdbscan")]
METHODS.append(ClusterSpec(method="kmeans", kmeans_clusters=4))


@pytest.mark.parametrize("spec", METHODS, ids=lambda spec: spec.method)
def test_every_method_finds_groups_that_are_apart(spec: ClusterSpec) -> None:
    points, truth = blobs(150, 80, 120, 60)
    found = find_clusters(points, np.eye(4, dtype=np.float32)[truth], spec)
    assert found.labels_N.max() == 3 and adjusted_rand_score(truth, found.labels_N) > 0.95
    sizes = np.bincount(found.labels_N[found.labels_N >= 0])
    assert list(sizes) == sorted(sizes, reverse=True)
    assert [role == "noise" for role in found.roles] == (found.labels_N < 0).tolist()
    assert (found.radius is not None) == (spec.method in ("dbscan", "paper"))


@pytest.mark.parametrize("spec", METHODS, ids=lambda spec: spec.method)
@pytest.mark.parametrize("n", [0, 1, 2, 9, 10, 25])
@pytest.mark.parametrize("alike", [True, False])
def test_every_method_takes_any_number_of_points(spec: ClusterSpec, n: int, alike: bool) -> None:
    points = np.zeros((n, 2)) if alike else np.random.default_rng(n).normal(size=(n, 2))
    found = find_clusters(points.astype(np.float32), np.eye(4, dtype=np.float32)[np.arange(n) % 4], spec)
    assert len(found.labels_N) == len(found.roles) == n


def test_the_paper_s_setting_is_eps_3_with_10_neighbours_and_no_split() -> None:
    points, side = bridged()
    vectors = np.eye(3, dtype=np.float32)[side]
    found = find_clusters(points, vectors, ClusterSpec(method="paper"))
    theirs = DBSCAN(eps=3, min_samples=10).fit(points)
    assert found.radius is not None and found.radius.eps == 3
    assert adjusted_rand_score(theirs.labels_, found.labels_N) == 1 and found.labels_N.max() == 0


def test_settings_that_the_paper_makes_are_not_made_twice() -> None:
    with pytest.raises(ValueError, match="method paper sets eps itself"):
        ClusterSpec(method="paper", eps=2.0)


def test_a_radius_as_set_is_used_as_it_is() -> None:
    points, truth = blobs(150, 150)
    found = find_clusters(points, np.eye(4, dtype=np.float32)[truth], ClusterSpec(eps=1.5, split_apart=None))
    assert found.radius is not None and found.radius.eps == 1.5
    assert (found.labels_N == dbscan_clusters(points, 1.5, 10).labels_N).all()

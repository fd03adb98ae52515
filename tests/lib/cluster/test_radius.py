"""eps without labels: near the knee, where clusters do not hang on it, and honest where there is no such place."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from damage_atlas.cluster.dbscan import dbscan
from damage_atlas.cluster.radius import choose_eps, find_knee


def islands(seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Eight groups of unequal size on a wide map, and a few points between them."""
    rng = np.random.default_rng(seed)
    sizes = [40, 60, 80, 120, 150, 200, 300, 400]
    centres = [(i % 4 * 40, i // 4 * 40) for i in range(8)]
    points = [rng.normal(centre, np.sqrt(n) / 4, (n, 2)) for centre, n in zip(centres, sizes, strict=True)]
    points.append(rng.uniform(-10, 130, (20, 2)))
    return scale * np.concatenate(points).astype(np.float32), np.repeat(np.arange(9), [*sizes, 20])


@pytest.mark.parametrize("seed", range(4))
def test_a_chosen_radius_is_stable_and_finds_the_groups(seed: int) -> None:
    points, group = islands(seed)
    radius = choose_eps(points, 10)
    labels = [dbscan(points, radius.eps * factor, 10)[0] for factor in (0.8, 1.0, 1.25)]
    scores = [adjusted_rand_score(labels[1], other) for other in (labels[0], labels[2])]
    assert np.isclose(radius.stability, min(scores)) and radius.stability >= 0.75
    assert adjusted_rand_score(group[:-20], labels[1][:-20]) > 0.9


def test_a_radius_scales_with_the_map() -> None:
    small, large = choose_eps(islands(0)[0], 10), choose_eps(islands(0, 7.0)[0], 10)
    assert np.isclose(7 * small.eps, large.eps, rtol=1e-4) and small.stability == large.stability


def test_an_unstable_knee_is_left_for_a_stable_radius_beside_it() -> None:
    """Pairs of groups with a gap as wide as the knee: a little more or less joins or parts them."""
    rng = np.random.default_rng(0)
    points = []
    for i in range(6):
        for side in (0.0, 1.0):
            points.append(rng.uniform(0, 10, (300, 2)) + [side * 11.0, i * 40.0])
    joined = np.concatenate(points).astype(np.float32)
    radius = choose_eps(joined, 10)
    assert radius.stability >= 0.75


@pytest.mark.parametrize("case", ["uniform", "one round group"])
def test_where_nothing_is_stable_the_knee_stays_and_says_so(case: str) -> None:
    rng = np.random.default_rng(1)
    points = (rng.uniform(0, 80, (1500, 2)) if case == "uniform" else rng.normal(0, 10, (1500, 2))).astype(np.float32)
    radius = choose_eps(points, 10)
    assert radius.eps == radius.knee == find_knee(points, 10) and radius.stability < 0.75


def test_one_cluster_of_nearly_everything_is_not_called_stable() -> None:
    rng = np.random.default_rng(2)
    points = np.concatenate([rng.normal(0, 1, (990, 2)), rng.normal(1000, 0.1, (10, 2))]).astype(np.float32)
    assert choose_eps(points, 10).stability < 0.75


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11])
@pytest.mark.parametrize("alike", [True, False])
def test_few_points(n: int, alike: bool) -> None:
    points = np.zeros((n, 2)) if alike else np.random.default_rng(n).normal(size=(n, 2))
    assert choose_eps(points.astype(np.float32), 10).eps > 0

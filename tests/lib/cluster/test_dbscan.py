"""DBSCAN in cells: cores and noise are scikit-learn's, whatever the points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from sklearn.cluster import DBSCAN

from damage_atlas.cluster.dbscan import dbscan


def assert_as_scikit_learn(points: np.ndarray, eps: float, min_neighbours: int) -> None:
    labels, is_core = dbscan(points, eps, min_neighbours)
    theirs = DBSCAN(eps=eps, min_samples=min_neighbours).fit(points)
    assert np.flatnonzero(is_core).tolist() == theirs.core_sample_indices_.tolist()
    assert ((labels < 0) == (theirs.labels_ < 0)).all()
    pairs = set(zip(labels[is_core].tolist(), theirs.labels_[is_core].tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}), "the same partition of core points"


# Eighths are exact in binary, so that ties (points exactly eps apart) are ties in every order of summing.
EIGHTHS = st.integers(-40, 40).map(lambda n: n / 8)
FLOATS = st.floats(-50, 50, width=32)
POINTS = st.tuples(st.integers(1, 60), st.sampled_from([EIGHTHS, FLOATS])).flatmap(
    lambda drawn: hnp.arrays(np.float64, (drawn[0], 2), elements=drawn[1])
)


@settings(max_examples=300, deadline=None)
@given(POINTS, st.sampled_from([0.125, 0.5, 1.0, 1.25, 2.5, 8.0]), st.integers(1, 12))
def test_cores_and_noise_are_those_of_scikit_learn(points: np.ndarray, eps: float, min_neighbours: int) -> None:
    assert_as_scikit_learn(points, eps, min_neighbours)


@pytest.mark.parametrize("neighbours", [3, 9, 40])
@pytest.mark.parametrize("crowd", [0, 2000])
def test_many_points(neighbours: int, crowd: int) -> None:
    rng = np.random.default_rng(neighbours)
    points = np.concatenate([rng.uniform(0, 100, (4000, 2)), rng.normal(50, 0.5, (crowd, 2))])
    assert_as_scikit_learn(points, float(np.sqrt(neighbours / np.pi * 100**2 / 4000)), 10)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 60), st.just(2)), elements=FLOATS), st.randoms())
def test_the_order_of_rows_changes_nothing_but_numbers(points: np.ndarray, random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(points)))
    random.shuffle(order)
    labels, is_core = dbscan(points, 5.0, 4)
    shuffled, core_shuffled = dbscan(points[order], 5.0, 4)
    assert (core_shuffled == is_core[order]).all() and ((shuffled < 0) == (labels[order] < 0)).all()
    pairs = set(zip(labels[order][core_shuffled].tolist(), shuffled[core_shuffled].tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_a_border_point_joins_the_nearest_core_point() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 30, (500, 2))
    labels, is_core = dbscan(points, 1.5, 6)
    border = np.flatnonzero((labels >= 0) & ~is_core)
    assert len(border) > 20
    nearest = np.flatnonzero(is_core)[cdist(points[border], points[is_core]).argmin(axis=1)]
    assert (labels[border] == labels[nearest]).all()


def test_crowded_cells_that_only_just_touch() -> None:
    """Two crowds of identical points, exactly eps apart, then a hair more."""
    for apart, clusters in ((1.0, 1), (np.nextafter(1.0, 2), 2)):
        points = np.repeat([[0.0, 0.0], [apart, 0.0]], 1500, axis=0)
        labels, is_core = dbscan(points, 1.0, 10)
        assert labels.max() + 1 == clusters and is_core.all()


def test_a_map_much_wider_than_the_radius() -> None:
    points = np.array([[0.0, 0.0], [0.0, 1e-4], [1e7, 1e7], [1e7, 1e7]])
    assert dbscan(points, 1e-3, 2)[0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("points", "eps"), [([[0.0, np.nan]], 1.0), ([[0.0, np.inf]], 1.0), ([[0.0, 0.0]], 0.0)])
def test_what_is_no_number_is_refused(points: list[list[float]], eps: float) -> None:
    with pytest.raises(ValueError, match="DBSCAN"):
        dbscan(np.array(points), eps, 1)


def test_no_points() -> None:
    labels, is_core = dbscan(np.empty((0, 2)), 1.0, 1)
    assert len(labels) == len(is_core) == 0

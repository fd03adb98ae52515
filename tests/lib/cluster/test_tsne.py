"""The map: sensible for any number of points, repeatable, and laid out from the one before."""

from __future__ import annotations

import numpy as np
import pytest

from damage_atlas.cluster.tsne import make_map
from damage_atlas.neighbours import exact_neighbours, without_self
from damage_atlas.spec import ClusterSpec

SPEC = ClusterSpec(map_iterations=260)


def unit(n: int, groups: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = np.eye(16)[np.arange(n) % groups] + rng.normal(0, 0.05, (n, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def laid_out(vectors: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    near = without_self(exact_neighbours(vectors, 91), 90) if len(vectors) > 1 else exact_neighbours(vectors, 0)
    return make_map(vectors, near, SPEC, start)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 20, 91])
def test_any_number_of_points_has_a_map(n: int) -> None:
    positions = laid_out(unit(n))
    assert positions.shape == (n, 2) and positions.dtype == np.float32 and np.isfinite(positions).all()


@pytest.mark.parametrize("n", [3, 40])
def test_identical_points_lie_together(n: int) -> None:
    positions = laid_out(np.repeat(unit(1), n, axis=0))
    assert np.ptp(positions, axis=0).max() < 1e-3


def test_the_same_input_gives_the_same_map() -> None:
    assert (laid_out(unit(90)) == laid_out(unit(90))).all()


def test_groups_lie_apart() -> None:
    positions, group = laid_out(unit(120)), np.arange(120) % 3
    centres = np.stack([positions[group == g].mean(axis=0) for g in range(3)])
    spread = max(positions[group == g].std() for g in range(3))
    between = min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert between > 2 * spread


def test_a_map_starts_from_the_one_before_without_flips_or_turns() -> None:
    vectors = unit(150)
    before = laid_out(vectors[:120])
    start = np.full((150, 2), np.nan)
    start[:120] = before
    after = laid_out(vectors, start)[:120]
    for axis in range(2):
        assert np.corrcoef(before[:, axis], after[:, axis])[0, 1] > 0.9


@pytest.mark.parametrize("n", [8, 14, 20, 31, 57])
def test_points_without_groups_are_spread_out(n: int) -> None:
    """Exaggeration alone would draw them into one point, for good."""
    vectors = np.random.default_rng(0).normal(size=(n, 16))
    positions = laid_out((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    assert np.ptp(positions, axis=0).min() > 1


def test_a_map_without_extent_is_no_place_to_start_from() -> None:
    start = np.full((90, 2), np.nan)
    start[:30] = 0
    assert np.ptp(laid_out(unit(90), start), axis=0).min() > 1

"""The map: sensible for any number of points, repeatable, and laid out from the one before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from openTSNE.affinity import PerplexityBasedNN
from openTSNE.nearest_neighbors import PrecomputedNeighbors
from openTSNE.tsne import kl_divergence_bh, kl_divergence_fft
from scipy.sparse import csr_matrix, random_array

from damage_atlas.cluster.tsne import (
    SMALLEST_MAP,
    affinities_of,
    join_map,
    kl_divergence,
    make_map,
    objective_among_fixed,
)
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


@pytest.mark.parametrize("free", [[4], [0, 7, 19], list(range(1, 20))])
def test_free_points_feel_what_they_would_if_all_were_free(free: list[int]) -> None:
    rng = np.random.default_rng(0)
    positions, p = rng.normal(0, 4, (20, 2)), rng.random((20, 20))
    p = csr_matrix((p + p.T) * (1 - np.eye(20)))
    fixed = np.delete(np.arange(20), free)
    objective = objective_among_fixed(positions[fixed], np.array(free), 1, theta=0)
    _, gradient = objective(positions[free].copy(), p[free], reference_embedding=positions.copy())
    _, of_all = kl_divergence_bh(positions, p, dof=1, bh_params={"theta": 0})
    assert np.allclose(gradient, of_all[free], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_trees_and_interpolation_say_what_a_whole_map_says(threads: int) -> None:
    rng = np.random.default_rng(1)
    positions, p = rng.normal(0, 15, (1500, 2)), random_array((1500, 1500), density=0.02, rng=rng, format="csr")
    p, free = csr_matrix(p + p.T), rng.permutation(1500)[:300]
    p /= p.sum()
    fixed = np.setdiff1d(np.arange(1500), free)
    interpolation = {"n_interpolation_points": 3, "min_num_intervals": 50, "ints_in_interval": 1}
    _, exact = kl_divergence_bh(positions, p, dof=1, bh_params={"theta": 0})
    for theta, (_, theirs) in (
        (0.5, kl_divergence_bh(positions, p, dof=1, bh_params={"theta": 0.5})),
        (None, kl_divergence_fft(positions, p, dof=1, fft_params=interpolation)),
    ):
        objective = objective_among_fixed(positions[fixed], free, threads, theta)
        _, ours = objective(positions[free].copy(), p[free], reference_embedding=positions.copy())
        off, theirs_off = (np.linalg.norm(found - exact[free]) for found in (ours, theirs[free]))
        assert off <= 1.1 * theirs_off < 0.06 * np.linalg.norm(exact[free]), theta


@pytest.mark.parametrize(("width", "theirs"), [(20, kl_divergence_fft), (70, kl_divergence_bh)])
def test_a_map_is_interpolated_while_it_is_small(width: float, theirs: Callable[..., tuple[float, np.ndarray]]) -> None:
    rng = np.random.default_rng(2)
    positions = rng.uniform(0, width, (3000, 2))
    p = csr_matrix(random_array((3000, 3000), density=0.01, rng=rng, format="csr"))
    named = {
        "dof": 1,
        "bh_params": {"theta": 0.5},
        "fft_params": {"n_interpolation_points": 3, "min_num_intervals": 50, "ints_in_interval": 1},
    }
    assert (kl_divergence(positions, p, **named)[1] == theirs(positions, p, **named)[1]).all()


@pytest.mark.parametrize("rows", [[0], [3, 50, 51, 119], list(range(120))])
def test_the_affinities_of_some_are_rows_of_all(rows: list[int]) -> None:
    near = without_self(exact_neighbours(unit(120), 31), 30)
    distances = np.sqrt(np.maximum(2 - 2 * near.similarities_NK.astype(float), 0))
    whole = PerplexityBasedNN(perplexity=10, knn_index=PrecomputedNeighbors(near.ids_NK, distances)).P
    found = affinities_of(np.array(rows), near, SPEC.model_copy(update={"perplexity": 10}))
    assert found.shape == (len(rows), 120)
    assert np.allclose(found.toarray(), whole[rows].toarray(), rtol=1e-12, atol=0)


def test_points_that_join_move_and_no_other() -> None:
    vectors = unit(120)
    near = without_self(exact_neighbours(vectors, 91), 90)
    fixed = np.arange(120) < 100
    start = np.zeros((120, 2))
    start[fixed] = make_map(vectors[:100], without_self(exact_neighbours(vectors[:100], 91), 90), SPEC)
    joined = join_map(near, SPEC, start + [300, -40], fixed)
    assert (joined[fixed] == (start + [300, -40])[fixed].astype(np.float32)).all()
    groups = np.arange(120) % 3
    centres = np.stack([joined[fixed & (groups == g)].mean(axis=0) for g in range(3)])
    nearest = np.linalg.norm(joined[~fixed][:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == groups[~fixed]).all()


def test_points_join_a_single_fixed_one() -> None:
    vectors = unit(SMALLEST_MAP + 1)
    near = without_self(exact_neighbours(vectors, 91), 90)
    fixed = np.arange(len(vectors)) == 3
    joined = join_map(near, SPEC, np.random.default_rng(0).normal(0, 1, (len(vectors), 2)), fixed)
    assert np.isfinite(joined).all()

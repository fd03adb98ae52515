"""Neighbours against plain loops, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from damage_atlas.neighbours import exact_neighbours, without_self


def unit(n: int, d: int = 5, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_neighbours_are_those_of_a_plain_search() -> None:
    vectors, queries = unit(60), unit(7, seed=1)
    found = exact_neighbours(vectors, 4, queries)
    for q, query in enumerate(queries):
        ranked = sorted(range(60), key=lambda i: (-float(vectors[i] @ query), i))
        assert found.ids_NK[q].tolist() == ranked[:4]
        assert np.allclose(found.similarities_NK[q], [vectors[i] @ query for i in ranked[:4]], atol=1e-6)


def test_ties_go_to_the_lower_row_and_k_may_be_too_large() -> None:
    vectors = np.repeat(unit(1), 5, axis=0)
    assert exact_neighbours(vectors, 9).ids_NK.tolist() == [[0, 1, 2, 3, 4]] * 5


@pytest.mark.parametrize(("n", "k"), [(0, 3), (4, 0)])
def test_nothing_to_find(n: int, k: int) -> None:
    assert exact_neighbours(unit(n), k, unit(2)).ids_NK.shape == (2, 0)


@pytest.mark.parametrize("vectors", [unit(30), np.repeat(unit(1), 30, axis=0)], ids=["different", "identical"])
def test_without_self_never_names_the_row_itself(vectors: np.ndarray) -> None:
    near = without_self(exact_neighbours(vectors, 6), 5)
    assert near.ids_NK.shape == near.similarities_NK.shape == (30, 5)
    assert not (near.ids_NK == np.arange(30)[:, None]).any()

"""Neighbours that a version keeps for the next are those that a search for all finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damage_atlas import cluster
from damage_atlas.cluster import near as module
from damage_atlas.cluster.near import KeptNeighbours, find_neighbours, kept_neighbours, neighbour_table
from damage_atlas.contracts import NEIGHBOURS
from damage_atlas.neighbours import Floats, Ints, Neighbours, exact_neighbours
from damage_atlas.pipeline import run_pipeline
from damage_atlas.spec import with_overrides
from damage_atlas.store import Store, start_run
from tests.support.published import steps

K = 12
ALL = 400


def unit(n: int = ALL, seed: int = 0) -> Floats:
    vectors = np.random.default_rng(seed).normal(size=(n, 6))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def kept_from(vectors: Floats, before: Ints, now: Ints) -> KeptNeighbours:
    """What a version of the rows ``before`` knows of the rows ``now``."""
    table = neighbour_table([f"image {row}" for row in before], find_neighbours(vectors[before], K))
    return kept_neighbours(table, [f"image {row}" for row in now])


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many were searched for among all, search by search."""
    asked: list[int] = []

    def spied(vectors: Floats, k: int, queries: Floats | None = None) -> Neighbours:
        if k == K + 1:
            asked.append(len(vectors) if queries is None else len(queries))
        return exact_neighbours(vectors, k, queries)

    monkeypatch.setattr(module, "exact_neighbours", spied)
    yield asked


def assert_same(found: Neighbours, vectors: Floats) -> None:
    wanted = find_neighbours(vectors, K)
    assert (found.ids_NK == wanted.ids_NK).all()
    assert np.allclose(found.similarities_NK, wanted.similarities_NK, atol=1e-6)


@pytest.mark.parametrize("new", [0, 1, 5, 40])
@pytest.mark.parametrize("gone", [0, 1, 3])
def test_they_are_those_of_a_search_for_all(searched: list[int], new: int, gone: int) -> None:
    vectors = unit()
    before = np.arange(ALL - new)
    now = np.random.default_rng(1).permutation(np.arange(gone, ALL))  # in another order, as ids of new images may be
    kept = kept_from(vectors, before, now)
    miss_one = who_had(vectors[before], set(range(gone)))
    searched.clear()
    found = find_neighbours(vectors[now], K, kept)
    assert searched == [asked for asked in (new + len(miss_one),) if asked]
    assert_same(found, vectors[now])


def who_had(vectors: Floats, gone: set[int]) -> list[int]:
    near = find_neighbours(vectors, K).ids_NK.tolist()
    return [row for row, ids in enumerate(near) if row not in gone and gone & set(ids)]


def test_with_many_new_ones_all_are_searched_for(searched: list[int]) -> None:
    vectors, everything = unit(), np.arange(ALL)
    kept = kept_from(vectors, everything[:300], everything)
    searched.clear()
    assert_same(find_neighbours(vectors, K, kept), vectors)
    assert searched[0] == ALL


def test_with_a_vector_that_is_another_nothing_is_believed() -> None:
    vectors, everything = unit(), np.arange(ALL)
    kept = kept_from(vectors, everything, everything)
    vectors[7] = unit(1, seed=5)[0]
    assert_same(find_neighbours(vectors, K, kept), vectors)


def test_a_few_rows_are_gathered_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", 6 * K * 7)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 33)
    vectors, everything = unit(), np.arange(ALL)
    assert_same(find_neighbours(vectors, K, kept_from(vectors, everything[:390], everything)), vectors)


def test_of_identical_vectors_none_is_its_own_neighbour() -> None:
    vectors, everything = np.repeat(unit(1), ALL, axis=0), np.arange(ALL)
    found = find_neighbours(vectors, K, kept_from(vectors, everything[:390], everything))
    assert not (found.ids_NK == everything[:, None]).any()
    assert all(len(set(ids)) == K for ids in found.ids_NK.tolist())


def test_another_number_of_neighbours_is_asked_for_anew() -> None:
    vectors, everything = unit(), np.arange(ALL)
    found = find_neighbours(vectors, 5, kept_from(vectors, everything, everything))
    assert (found.ids_NK == find_neighbours(vectors, 5).ids_NK).all()


def test_a_version_goes_on_from_those_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster, "WORTH_KEEPING", 1)
    given: list[KeptNeighbours | None] = []

    def spied(vectors: Floats, k: int, kept: KeptNeighbours | None = None) -> Neighbours:
        given.append(kept)
        return find_neighbours(vectors, k, kept)

    monkeypatch.setattr(cluster, "find_neighbours", spied)
    for step in steps(tmp_path):
        run = start_run(Store(tmp_path / "store"), **step)
        list(run_pipeline(run))
    first, second = given
    assert first is None and second is not None
    new = run.read_table("cluster", "points.parquet").num_rows - np.isfinite(second.farthest_N).sum()
    assert new > 0 and np.isnan(second.farthest_N).sum() == new
    assert (second.ids_NK[np.isfinite(second.farthest_N)] >= 0).all(), "nothing is gone"
    assert run.read_table("cluster", "neighbours.parquet").schema.equals(NEIGHBOURS)

    # Those of other vectors, and damaged ones, are not believed.
    assert run.store.folder is not None
    output = run.artifact("cluster").outputs["neighbours.parquet"]
    (run.store.folder / output.key).write_bytes(b"damaged")
    for assignment in ("cluster.seed=1", "cluster.refit=true", "cluster.perplexity=20"):
        again = start_run(Store(tmp_path / "store"), **_with(step, assignment))
        list(run_pipeline(again))
    assert given[2:] == [None, None, None]
    assert "All neighbours are searched for" in caplog.text


def _with(step: dict[str, Any], assignment: str) -> dict[str, Any]:
    return step | {"run_id": assignment.replace("=", "-"), "settings": with_overrides(step["settings"], [assignment])}

"""The index stage: by size, in shards, grown from the previous version, and never worse than its recall says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from damage_atlas.faiss_index import index_bytes, one_thread, read_index, search_index
from damage_atlas.index.build import add_vectors, choose_kind, list_count, new_index, remove_rows
from damage_atlas.index.measure import Exam, probe_enough
from damage_atlas.neighbours import read_vectors
from damage_atlas.parts import map_in_threads
from damage_atlas.spec import IndexSpec
from damage_atlas.store import Run, Store
from tests.lib.index.synthetic_archive import index_version, unit_vectors


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def one_by_one(function: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
    return map(function, parts)


def built(vectors: np.ndarray, kind: str, **settings: Any) -> Any:
    spec = IndexSpec(kind=kind, **settings)
    index = new_index(vectors, kind, spec)
    add_vectors(index, vectors, spec.rows_per_part, map_in_threads)
    return index


def facts_of(run: Run) -> dict[str, Any]:
    return run.artifact("index").facts


@pytest.mark.parametrize(
    ("kind", "vectors", "wanted", "why"),
    [
        ("auto", 200_000, "flat", "exact search up to 200,000"),
        ("auto", 200_001, "ivf", "200,001 vectors"),
        ("hnsw", 5, "hnsw", "as set"),
        ("flat", 10**7, "flat", "as set"),
        ("ivf", 38, "flat", "too few"),
        ("ivf", 39, "ivf", "as set"),
    ],
)
def test_the_kind_follows_the_size_and_says_why(kind: str, vectors: int, wanted: str, why: str) -> None:
    found, reason = choose_kind(vectors, IndexSpec(kind=kind))  # type: ignore[arg-type]
    assert found == wanted and why in reason


@pytest.mark.parametrize(
    ("vectors", "before", "wanted"),
    [(250_000, "flat", "flat"), (250_001, "flat", "ivf"), (200_001, "ivf", "ivf"), (200_000, "ivf", "flat")],
)
def test_a_flat_index_stays_flat_for_a_quarter_more(vectors: int, before: str, wanted: str) -> None:
    assert choose_kind(vectors, IndexSpec(), before)[0] == wanted


@pytest.mark.parametrize(("vectors", "lists"), [(0, 1), (39, 1), (1_000, 25), (200_001, 1024), (1_000_000, 2048)])
def test_lists_are_about_twice_the_root_and_never_thin(vectors: int, lists: int) -> None:
    assert list_count(vectors) == lists


def test_the_number_of_workers_changes_no_byte() -> None:
    vectors = unit_vectors(3000)
    spec = IndexSpec(kind="ivf", rows_per_part=700)
    found = set()
    for threads, map_parts in ((1, one_by_one), (2, map_in_threads)):
        faiss.omp_set_num_threads(threads)
        index = new_index(vectors, "ivf", spec)
        add_vectors(index, vectors, spec.rows_per_part, map_parts)
        found.add(index_bytes(index))
    assert len(found) == 1
    assert len({index_bytes(built(vectors, "hnsw")) for _ in range(2)}) == 1


def test_shards_hold_what_one_index_holds() -> None:
    vectors = unit_vectors(3000)
    sharded, whole = built(vectors, "ivf", rows_per_part=123), built(vectors, "ivf", rows_per_part=10_000)
    assert sharded.ntotal == 3000 and np.array_equal(sharded.reconstruct_n(0, 3000), vectors)
    for index in (sharded, whole):
        index.nprobe = 4
    assert np.array_equal(sharded.search(vectors[:50], 10)[0], whole.search(vectors[:50], 10)[0])


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_recall_is_that_of_plain_loops(kind: str) -> None:
    vectors = unit_vectors(1500)
    index = built(vectors, kind)
    exam = Exam.draw(vectors, 40, 10, seed=3)
    found = index.search(exam.queries_QD, 11)[1]
    hits = 0
    for query, ids in zip(exam.queries_QD, found, strict=True):
        exact = sorted(range(len(vectors)), key=lambda i: -float(vectors[i] @ query))
        hits += len(set(exact[1:11]) & set(ids.tolist()))
    assert exam.recall(index) == pytest.approx(hits / 400, abs=0.003)


def test_ivf_probes_until_the_recall_is_met() -> None:
    vectors = np.random.default_rng(0).normal(size=(8000, 16)).astype(np.float32)  # no clusters: the hard case
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = built(vectors, "ivf")
    exam = Exam.draw(vectors, 200, 10, seed=0)
    recall = probe_enough(index, exam, IndexSpec())
    assert recall >= 0.95 and index.nprobe > 1
    index.nprobe //= 2
    assert exam.recall(index) < 0.95
    assert probe_enough(index, exam, IndexSpec(recall_wanted=1.0)) == 1.0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_archives_of_a_few_vectors(store: Store, count: int) -> None:
    run = index_version(store, range(count), "index.kind=ivf")
    facts = facts_of(run)
    assert (facts["kind"], facts["vectors"], facts["recall_at_10"]) == ("flat", count, 1.0)
    grown = index_version(store, range(count), "index.kind=ivf")
    assert facts_of(grown)["kept"] == count


def test_identical_vectors_have_full_recall() -> None:
    vectors = np.repeat(unit_vectors(1), 200, axis=0)
    for kind in ("flat", "ivf"):
        index = built(vectors, kind)
        assert probe_enough(index, Exam.draw(vectors, 50, 10, 0), IndexSpec()) == 1.0


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_run_records_what_it_built_and_how_well_it_answers(store: Store, kind: str) -> None:
    run = index_version(store, range(400), f"index.kind={kind}")
    facts = facts_of(run)
    assert json.loads(run.read("index", "recall.json")) == facts
    assert facts["rebuilt"] and facts["origin"] == "built from nothing: there is no earlier version"
    assert facts["recall_at_10"] >= 0.95 and facts["recall_sample"] == 400 and facts["queries_per_second"] > 0
    assert ("lists_probed" in facts) == (kind == "ivf") and facts["built_on_gpu"] is False


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_only_new_vectors_are_added_and_vanished_ones_removed(store: Store, kind: str) -> None:
    index_version(store, range(600), f"index.kind={kind}")
    numbers = [*range(5, 300), *range(310, 640)]
    run = index_version(store, reversed(numbers), f"index.kind={kind}", "index.rows_per_part=16")
    facts = facts_of(run)
    assert (facts["kept"], facts["added"], facts["removed"], facts["rebuilt"]) == (585, 40, 15, False)
    assert facts["origin"] == "grown from version 1" and facts["changed_since_built"] == 55
    index = read_index(run)
    assert index.ids[:5] == ["000005", "000006", "000007", "000008", "000009"] and index.ids[-1] == "000639"
    ids, vectors = read_vectors(run)
    assert sorted(index.ids) == ids
    assert np.array_equal(index.vectors(), vectors[[ids.index(i) for i in index.ids]]), "row i of ids is vector i"


def test_a_grown_flat_index_answers_as_a_fresh_one(store: Store, tmp_path: Path) -> None:
    index_version(store, range(300))
    grown = read_index(index_version(store, range(20, 330)))
    fresh = read_index(index_version(Store(tmp_path / "fresh"), range(20, 330)))
    queries = unit_vectors(30, seed=5)
    answers = []
    for index in (grown, fresh):
        near = search_index(index.faiss_index, queries, 10)
        answers.append([[index.ids[i] for i in row] for row in near.ids_NK])
    assert answers[0] == answers[1]


def test_changes_add_up_until_the_index_is_built_anew(store: Store) -> None:
    kinds = ["index.kind=ivf"]
    sizes = [500, 560, 610, 640]
    reasons = [facts_of(index_version(store, range(size), *kinds))["origin"] for size in sizes]
    assert reasons[1] == "grown from version 1" and reasons[2] == "grown from version 2"
    assert "140 vectors were added or removed" in reasons[3] and "more than 20% of 640" in reasons[3]


def test_reasons_to_build_from_nothing(store: Store) -> None:
    index_version(store, range(300))
    other_kind = facts_of(index_version(store, range(300), "index.kind=hnsw"))
    assert other_kind["rebuilt"] and "version 1 has another kind of index (flat, 16 dimensions)" in other_kind["origin"]
    forgetting = facts_of(index_version(store, range(1, 300), "index.kind=hnsw"))
    assert forgetting["rebuilt"] and "1 vectors of version 2 are gone, and hnsw cannot forget" in forgetting["origin"]
    grown = facts_of(index_version(store, range(1, 310), "index.kind=hnsw"))
    assert not grown["rebuilt"] and grown["added"] == 10 and grown["recall_at_10"] >= 0.95
    other_model = facts_of(index_version(store, range(1, 310), "index.kind=hnsw", model="m@2"))
    assert other_model["rebuilt"] and "is of another model (m@1)" in other_model["origin"]


def test_a_damaged_index_is_built_from_nothing(store: Store) -> None:
    first = index_version(store, range(300))
    path = Path(store.folder) / first.artifact("index").outputs["index.faiss"].key  # type: ignore[arg-type]
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    facts = facts_of(index_version(store, range(300)))
    assert facts["rebuilt"] and "the index of version 1 cannot be used" in facts["origin"]
    assert "SHA-256 differs" in facts["origin"]


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_rows_move_up_when_others_go(kind: str) -> None:
    vectors = unit_vectors(500)
    index = built(vectors, kind)
    gone = np.random.default_rng(0).random(500) < 0.3
    remove_rows(index, gone)
    assert np.array_equal(index.reconstruct_n(0, index.ntotal), vectors[~gone])
    remove_rows(index, np.ones(index.ntotal, bool))
    assert index.ntotal == 0


def test_one_thread_gives_the_threads_back() -> None:
    before = faiss.omp_get_max_threads()
    with one_thread():
        assert faiss.omp_get_max_threads() == 1
    assert faiss.omp_get_max_threads() == before

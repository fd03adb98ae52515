"""Reading an index guardedly, and exact answers among some of its rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from damage_atlas.errors import ContractError
from damage_atlas.faiss_index import index_bytes, load_index, on_cpu, on_gpu, read_index, search_index
from damage_atlas.index.build import add_vectors, new_index
from damage_atlas.metrics import retrieval_scores
from damage_atlas.parts import map_in_threads
from damage_atlas.spec import IndexSpec
from damage_atlas.store import Store
from tests.lib.index.synthetic_archive import index_version, unit_vectors

KINDS = ("flat", "ivf", "hnsw")


def built(vectors: np.ndarray, kind: str) -> Any:
    index = new_index(vectors, kind, IndexSpec())
    add_vectors(index, vectors, 100, map_in_threads)
    return index


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_read_as_it_was_written(kind: str) -> None:
    vectors = unit_vectors(300)
    index = built(vectors, kind)
    again = load_index(index_bytes(index), 16, 300)
    assert (again.search(vectors[:3], 4)[1] == index.search(vectors[:3], 4)[1]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0, 3, 50, 0.5, -1])
def test_a_truncated_index_is_refused(kind: str, kept: float) -> None:
    data = index_bytes(built(unit_vectors(200), kind))
    cut = int(len(data) * kept) if isinstance(kept, float) else kept
    with pytest.raises(ContractError, match=r"index\.faiss is damaged: .* Start a new run") as caught:
        load_index(data[:cut], 16, 200)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("dimension", "count"), [(6, 200), (16, 201)])
def test_an_index_that_is_not_what_its_artifact_says_is_refused(dimension: int, count: int) -> None:
    data = index_bytes(built(unit_vectors(200), "flat"))
    with pytest.raises(ContractError, match="holds 200 vectors of 16 dimensions"):
        load_index(data, dimension, count)


def test_an_index_of_a_foreign_kind_is_refused() -> None:
    with pytest.raises(ContractError, match="IndexFlatL2, which is never built here"):
        load_index(index_bytes(faiss.IndexFlatL2(16)), 16, 0)


def test_a_damaged_file_is_refused_before_faiss_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = index_version(Store(tmp_path), range(50))
    path = tmp_path / run.artifact("index").outputs["index.faiss"].key
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(faiss, "deserialize_index", lambda _: pytest.fail("read unchecked"))
    with pytest.raises(ContractError, match=r"index\.faiss is not what was sealed"):
        read_index(run)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_the_nearest_among_some_are_those_of_a_plain_search(kind: str, share: float) -> None:
    vectors, queries = unit_vectors(600), unit_vectors(12, seed=4)
    among = np.random.default_rng(1).random(600) < share
    near = search_index(built(vectors, kind), queries, 7, among)
    rows = np.flatnonzero(among)
    for query, found in zip(queries, near.ids_NK, strict=True):
        exact = sorted(rows, key=lambda i: (-float(vectors[i] @ query), i))[:7]
        assert found.tolist() == exact
    assert near.ids_NK.shape[1] == min(7, len(rows))


def test_a_gpu_is_used_where_there_is_one_and_never_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here: what is checked is only that each copy goes to the card and comes back."""
    index = built(unit_vectors(50), "flat")
    assert on_gpu(index) is index and on_cpu(index) is index
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda resources, device, i: ("card", device, i), raising=False)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", lambda moved: moved[2], raising=False)
    assert on_gpu(index) == ("card", 0, index) and on_cpu(on_gpu(index)) is index
    graph = built(unit_vectors(50), "hnsw")
    assert on_gpu(graph) is graph, "HNSW has no form on a GPU"


def test_nothing_puts_other_methods_into_faiss() -> None:
    """`faiss.contrib.torch_utils` would, for the whole process, and its methods know no search parameters."""
    everything = (
        "import sys, damage_atlas.pipeline, damage_atlas.query, damage_atlas.metrics, damage_atlas.train.losses"
    )
    script = f"{everything}; print('faiss.contrib.torch_utils' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_scores_leave_faiss_as_it_is() -> None:
    retrieval_scores(
        np.eye(4, dtype=np.float32), ["a", "a", "b", "b"], np.eye(4, dtype=np.float32), ["a", "a", "b", "b"]
    )
    assert "faiss.contrib.torch_utils" not in sys.modules

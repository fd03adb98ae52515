"""Near-duplicates against plain loops, at the edges, and where there are too many."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage_atlas.errors import InputError
from damage_atlas.query import duplicates, near_duplicates
from damage_atlas.store import Store
from tests.lib.index.synthetic_archive import observed_version, unit_vectors


def plain_groups(vectors: dict[str, np.ndarray], seen: list[dict[str, Any]], threshold: float) -> list[list[str]]:
    """The definition: join, until nothing changes, all that are alike; keep what was seen more than once."""
    groups = [{image_id} for image_id in vectors]

    def alike(one: set[str], other: set[str]) -> bool:
        return any(float(vectors[i] @ vectors[j]) >= threshold - 1e-6 for i in one for j in other)

    changed = True
    while changed:
        changed = False
        for one in groups:
            for other in groups:
                if one is not other and alike(one, other):
                    one |= other
                    groups.remove(other)
                    changed = True
                    break
            if changed:
                break
    places = [sorted(row["image_id"] for row in seen if row["image_id"] in group) for group in groups]
    return sorted(group for group in places if len(group) > 1)


def with_near_copies(count: int, copies: int, seed: int) -> dict[str, np.ndarray]:
    """Unit vectors, and near copies of some, copies of copies among them."""
    rng = np.random.default_rng(seed)
    vectors = list(unit_vectors(count, seed))
    for _ in range(copies):
        near = vectors[int(rng.integers(len(vectors)))] + rng.normal(scale=10.0 ** rng.uniform(-4, -1), size=16)
        vectors.append((near / np.linalg.norm(near)).astype(np.float32))
    return {f"i{number:04d}": vectors[number] for number in rng.permutation(len(vectors))}


def found(folder: Path, vectors: dict[str, np.ndarray], seen: list[dict[str, Any]], kind: str, threshold: float) -> Any:
    store = Store(folder)
    observed_version(store, vectors, seen, f"index.kind={kind}")
    return near_duplicates(store, "a", threshold)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("threshold", [0.9999, 0.99, 0.9, 0.7])
def test_groups_are_those_of_plain_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, threshold: float
) -> None:
    vectors = with_near_copies(150, 60, seed=1)
    seen = [{"image_id": i} for i in vectors] + [{"image_id": i, "asset_id": "twice"} for i in list(vectors)[:5]]
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 7 * len(vectors))
    groups = found(tmp_path, vectors, seen, kind, threshold)
    assert sorted(sorted(place["image_id"] for place in group["places"]) for group in groups) == plain_groups(
        vectors, seen, threshold
    )
    assert [group["observations"] for group in groups] == sorted((g["observations"] for g in groups), reverse=True)
    for group in groups:
        images = sorted({place["image_id"] for place in group["places"]})
        assert group["images"] == len(images) and group["observations"] == len(group["places"])
        cosines = [float(vectors[i] @ vectors[j]) for i in images for j in images if i < j]
        joined = [cosine for cosine in cosines if cosine >= threshold - 1e-6] or [1.0]
        assert group["lowest_similarity"] == pytest.approx(min(joined), abs=2e-6)
        assert group["highest_similarity"] == pytest.approx(max(joined), abs=2e-6)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 60), copies=st.integers(0, 30), seed=st.integers(0, 10**6), threshold=st.floats(0.5, 1.0),
    kind=st.sampled_from(["flat", "ivf"]),
)  # fmt: skip
def test_any_archive_gives_the_groups_of_plain_loops(
    count: int, copies: int, seed: int, threshold: float, kind: str
) -> None:
    vectors = with_near_copies(count, copies, seed)
    seen = [{"image_id": i} for i in vectors]
    cosines = np.stack(list(vectors.values())) @ np.stack(list(vectors.values())).T
    if np.abs(cosines - (threshold - 1e-6)).min() < 1e-6:
        return  # on the very edge the order of summation decides
    with tempfile.TemporaryDirectory() as folder:
        groups = found(Path(folder), vectors, seen, kind, threshold)
    assert sorted(sorted(place["image_id"] for place in group["places"]) for group in groups) == plain_groups(
        vectors, seen, threshold
    )


def test_the_very_same_pixels_are_a_group(tmp_path: Path) -> None:
    vectors = {"i": unit_vectors(1)[0], "j": -unit_vectors(1)[0]}
    seen = [{"image_id": "i", "asset_id": "pier"}, {"image_id": "j"}, {"image_id": "i", "asset_id": "wall"}]
    (group,) = found(tmp_path, vectors, seen, "flat", 1.0)
    assert (group["observations"], group["images"]) == (2, 1)
    assert (group["lowest_similarity"], group["highest_similarity"]) == (1.0, 1.0)
    assert [place["asset_id"] for place in group["places"]] == ["pier", "wall"]


def test_all_identical_and_nothing_at_all(tmp_path: Path) -> None:
    vectors = {f"i{number:02d}": unit_vectors(1)[0] for number in range(50)}
    (group,) = found(tmp_path / "same", vectors, [{"image_id": i} for i in vectors], "ivf", 1.0)
    assert group["images"] == 50
    assert found(tmp_path / "empty", {}, [], "flat", 0.5) == []
    lone = {"i": unit_vectors(1)[0]}
    assert found(tmp_path / "one", lone, [{"image_id": "i"}], "flat", 0.1) == []


def test_the_largest_come_first_and_the_rest_may_be_left_out(tmp_path: Path) -> None:
    vectors = with_near_copies(80, 60, seed=3)
    every = found(tmp_path, vectors, [{"image_id": i} for i in vectors], "flat", 0.99)
    assert len(every) > 3 and near_duplicates(Store(tmp_path), "a", 0.99, limit=3) == every[:3]


@pytest.mark.parametrize(("threshold", "limit"), [(0.0, None), (1.01, None), (float("nan"), None), (0.9, 0)])
def test_thresholds_and_limits_that_cannot_be_meant(tmp_path: Path, threshold: float, limit: int | None) -> None:
    with pytest.raises(InputError, match="--threshold|--limit"):
        near_duplicates(Store(tmp_path), "a", threshold, limit)


def test_too_many_pairs_is_an_error_before_memory_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = with_near_copies(200, 0, seed=0)
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", 100)
    with pytest.raises(InputError, match="more than 100 pairs of the 200 images are as alike as that. Raise it"):
        found(tmp_path, vectors, [{"image_id": i} for i in vectors], "flat", 0.1)

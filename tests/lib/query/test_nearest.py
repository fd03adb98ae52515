"""Search against a plain search, with every filter and all of them; what is kept in memory."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damage_atlas.errors import ContractError, InputError
from damage_atlas.query import published
from damage_atlas.query.nearest import search
from damage_atlas.store import Run, Store
from tests.lib.index.synthetic_archive import observed_version, unit_vectors

COUNT = 300
VECTORS = {f"i{number:04d}": vector for number, vector in enumerate(unit_vectors(COUNT, seed=7))}
START = datetime(2026, 3, 1, tzinfo=UTC)


def seen() -> list[dict[str, Any]]:
    """Each image once, every seventh a second time for another asset a month later."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "image_id": image_id,
            "asset_id": f"pier-{number % 3}" if number % 11 else None,
            "label": ("crack", "sound", "crack+spalling", None)[int(rng.integers(4))],
            "cluster_id": None if number % 5 == 0 else number % 5,
            "captured_at": START + timedelta(hours=number) if number % 4 else None,
        }
        for number, image_id in enumerate(VECTORS)
    ]
    again = [
        row | {"asset_id": "wall", "captured_at": START + timedelta(days=31), "tile_x": 5, "tile_y": 6,
               "tile_width": 7, "tile_height": 8, "position_m": 2.5, "frame_time_s": 0.5} for row in rows[::7]
    ]  # fmt: skip
    return rows + again


SEEN = seen()


@pytest.fixture(params=["flat", "ivf", "hnsw"], scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return observed_version(Store(tmp_path_factory.mktemp("store")), VECTORS, SEEN, f"index.kind={request.param}")


def test_what_the_search_prints_can_be_asked_for(run: Run) -> None:
    first = search(run.store, run.spec.archive, "i0007", k=3)
    assert search(run.store, run.spec.archive, first[0]["uri"], k=3) == first


def passes(row: dict[str, Any], filters: dict[str, Any]) -> bool:
    """The definition, written as one would say it."""
    if "asset" in filters and row["asset_id"] != filters["asset"]:
        return False
    if "label" in filters and filters["label"] not in (row["label"] or "").split("+"):
        return False
    if "cluster" in filters and row["cluster_id"] != (None if filters["cluster"] == "noise" else filters["cluster"]):
        return False
    when = row["captured_at"]
    if "since" in filters and (when is None or when.date() < filters["since"]):
        return False
    return not ("until" in filters and (when is None or when.date() > filters["until"]))


def plain_search(query: np.ndarray, k: int, filters: dict[str, Any]) -> list[tuple[str, int]]:
    """Image ids, best first, each with the number of observations that pass."""
    passing = [row["image_id"] for row in SEEN if passes(row, filters)]
    ranked = sorted(set(passing), key=lambda i: (-float(VECTORS[i] @ query), i))
    return [(image_id, passing.count(image_id)) for image_id in ranked[:k]]


FILTERS: dict[str, list[Any]] = {
    "asset": ["pier-1", "wall"],
    "label": ["crack", "spalling"],
    "cluster": [3, "noise"],
    "since": [date(2026, 3, 4)],
    "until": [date(2026, 3, 9), date(2026, 4, 1)],
}
ONE_OF_EACH = [dict(zip(FILTERS, values, strict=True)) for values in itertools.product(*FILTERS.values())]
COMBINATIONS = [
    dict(chosen)
    for size in range(1, 6)
    for values in ONE_OF_EACH[:: 1 if size == 1 else 5]
    for chosen in itertools.combinations(values.items(), size)
]


def test_with_filters_the_answer_is_exact(run: Run) -> None:
    for filters in {str(sorted(f.items(), key=str)): f for f in COMBINATIONS}.values():
        query = "i0100"
        rows = search(run.store, "a", query, 8, **filters)
        assert [(r["image_id"], r["observations"]) for r in rows] == plain_search(VECTORS[query], 8, filters), filters
        for row in rows:
            assert row["similarity"] == pytest.approx(float(VECTORS[row["image_id"]] @ VECTORS[query]), abs=2e-6)
            assert passes(row, filters), "the observation that is shown is one that passes"


def test_without_a_filter_an_image_finds_itself_and_where_it_lies(run: Run) -> None:
    rows = search(run.store, "a", "i0007", 5)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0] == rows[0] | {
        "image_id": "i0007", "similarity": 1.0, "observations": 2, "asset_id": "pier-1", "tile_x": None,
        "uri": "file:///images/7.png", "cluster_id": 2,
    }  # fmt: skip
    (place,) = search(run.store, "a", "i0007", 1, asset="wall")
    assert place == place | {
        "observations": 1, "tile_x": 5, "tile_y": 6, "tile_width": 7, "tile_height": 8, "position_m": 2.5,
        "frame_time_s": 0.5, "captured_at": START + timedelta(days=31),
    }  # fmt: skip


def test_days_and_times_are_both_understood(run: Run) -> None:
    by_day = search(run.store, "a", "i0001", 99, since="2026-03-04", until="2026-03-04")
    assert {row["captured_at"].date() for row in by_day} == {date(2026, 3, 4)} and len(by_day) == 18
    noon = datetime(2026, 3, 4, 13, tzinfo=timezone(timedelta(hours=1)))
    for since in (noon, "2026-03-04T12:00", "2026-03-04T13:00+01:00"):
        after = search(run.store, "a", "i0001", 99, since=since, until=date(2026, 3, 4))
        assert min(row["captured_at"] for row in after) == datetime(2026, 3, 4, 13, tzinfo=UTC)


def test_filters_that_leave_nothing_give_no_rows(run: Run) -> None:
    assert search(run.store, "a", "i0001", asset="wall", since="2027-01-01") == []


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"asset": "pier-7"}, "--asset pier-7: not in the current version of a. Did you mean pier-"),
        ({"asset": ""}, "There are pier-0"),
        ({"label": "crak"}, "Did you mean crack?"),
        ({"cluster": 77}, "--cluster 77: not in the current version"),
        ({"cluster": "nose"}, "Did you mean noise?"),
        ({"since": "yesterday"}, "--since yesterday: not a date"),
        ({"since": "2026-05-02", "until": "2026-05-01"}, "nothing can lie between"),
    ],
)
def test_filters_that_cannot_be_meant(run: Run, filters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        search(run.store, "a", "i0001", **filters)
    assert message in caught.value.message and "\n" not in caught.value.message


def test_dates_where_no_image_has_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    observed_version(store, {"i": VECTORS["i0001"]}, [{"image_id": "i"}])
    with pytest.raises(InputError, match="no image of a says when it was captured"):
        search(store, "a", "i", since="2026-01-01")
    assert [row["image_id"] for row in search(store, "a", "i")] == ["i"]


def test_the_index_is_read_once_and_little_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_kept", type(published._kept)())
    reads = []
    read = published.read_index
    monkeypatch.setattr(published, "read_index", lambda run: reads.append(run.uri) or read(run))
    stores = [Store(tmp_path / name) for name in ("a", "b", "c")]
    for number, store in enumerate(stores):
        observed_version(store, {"i": VECTORS[f"i{number:04d}"]}, [{"image_id": "i"}])
        for _ in range(3):
            search(store, "a", "i")
    assert len(reads) == 3 and len(published._kept) == 2
    search(stores[0], "a", "i")
    assert len(reads) == 4, "the one that was asked longest ago was let go"


def test_what_is_damaged_and_cannot_be_made_again_is_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = observed_version(store, {"i": VECTORS["i0000"]}, [{"image_id": "i"}])
    path = tmp_path / run.artifact("index").outputs["index.faiss"].key
    path.write_bytes(path.read_bytes()[:-4])
    assert len(search(store, "a", "i")) == 1, "its vectors are there"
    published._kept.clear()
    for name, output in run.artifact("embed").outputs.items():
        if name.startswith("vectors-"):
            (tmp_path / output.key).unlink()
    with pytest.raises(ContractError, match="was sealed and is gone") as caught:
        search(store, "a", "i")
    assert "\n" not in caught.value.message

"""Unpublished runs are taken away in two passes; what is published, young, shared, or of unknown age stays."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from damage_atlas.errors import ContractError, InputError, StoreError
from damage_atlas.publish import publish_run, verify_run
from damage_atlas.query import published_run
from damage_atlas.spec import Settings
from damage_atlas.store import Run, Store, start_run
from damage_atlas.store.retention import prune
from tests.support.publisher import ARCHIVE, open_on_current, seal_all

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=40)
OLD_ID = (NOW - timedelta(days=40)).strftime("%Y%m%dT%H%M%SZ")


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(tmp_path / "store")
    return Store(f"s3://{request.getfixturevalue('s3_bucket')}/atlas")


def keys(store: Store) -> list[str]:
    return [item.key for item in store.list()]


def test_two_passes_take_away_what_was_never_published(store: Store) -> None:
    kept, given_up = open_on_current(store, "kept"), open_on_current(store, "given-up")
    for run in (kept, given_up):
        seal_all(run)
    publish_run(kept)
    store.create(f"archives/{ARCHIVE}/vectors/m@v1/vectors-a.parquet", b"shared")

    assert prune(store, ARCHIVE, 30) == prune(store, ARCHIVE, 30, now=NOW + timedelta(days=29))
    assert prune(store, ARCHIVE, 30).retired == (), "it is young"
    before = keys(store)
    assert prune(store, ARCHIVE, 30, now=LATER, dry_run=True).retired == ("given-up",) and keys(store) == before

    first = prune(store, ARCHIVE, 30, now=LATER)
    assert (first.retired, first.removed, first.objects) == (("given-up",), (), 0)
    assert sorted(set(keys(store)) - set(before)) == [f"{given_up.key}/retired.json"]
    again = prune(store, ARCHIVE, 30, now=LATER + timedelta(hours=23))
    assert (again.retired, again.removed) == ((), ()), "a day has to lie between"

    a_day_later = LATER + timedelta(days=1)
    would = prune(store, ARCHIVE, 30, now=a_day_later, dry_run=True)
    done = prune(store, ARCHIVE, 30, now=a_day_later)
    assert done.removed == ("given-up",) and done.objects == would.objects == 14
    assert keys(store) == [key for key in before if not key.startswith(f"{given_up.key}/")]
    assert verify_run(published_run(store, ARCHIVE)) == []
    assert prune(store, ARCHIVE, 30, now=a_day_later).removed == ()


def test_a_marked_run_is_neither_published_nor_gone_on_with(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = open_on_current(store, OLD_ID)
    seal_all(run)
    prune(store, ARCHIVE, 30, now=LATER)
    with pytest.raises(ContractError, match="is being deleted. Start a new one"):
        publish_run(run)

    def ask() -> Run:
        return start_run(
            store, kind="run", archive="another", images="/images", model="m", settings=Settings(), run_id=None
        )

    begun = ask()
    assert ask().key == begun.key, "an unfinished run is gone on with"
    prune(store, "another", 30, now=LATER)
    assert ask().key != begun.key


def test_age_is_that_of_the_newest_stage_then_of_the_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    named = open_on_current(store, "by-hand")
    dated = open_on_current(store, f"{OLD_ID}-a1b2c3")
    broken = f"archives/{ARCHIVE}/runs/{OLD_ID}-broken"
    store.create(f"{broken}/run.yaml", b"\xff")
    store.create(f"archives/{ARCHIVE}/runs/99999999T999999Z/embed/plan.json", b"{}")
    done = prune(store, ARCHIVE, 30)
    assert set(done.retired) == {dated.spec.run_id, f"{OLD_ID}-broken"}
    assert set(done.undated) == {named.spec.run_id, "99999999T999999Z"}
    seal_all(open_on_current(store, f"{OLD_ID}-at-work"))
    assert f"{OLD_ID}-at-work" not in prune(store, ARCHIVE, 30).retired, "it has sealed a stage just now"


def test_an_interrupted_deletion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    run = open_on_current(store, OLD_ID)
    seal_all(run)
    prune(store, ARCHIVE, 30, now=LATER)
    left = 13
    delete = Store.delete

    def dies(self: Store, key: str) -> None:
        nonlocal left
        if left == 0:
            raise StoreError("the machine went away")
        left -= 1
        delete(self, key)

    monkeypatch.setattr(Store, "delete", dies)
    with pytest.raises(StoreError):
        prune(store, ARCHIVE, 30, now=LATER + timedelta(days=2))
    assert keys(store) == [f"{run.key}/retired.json"], "the mark goes last"
    monkeypatch.undo()
    assert prune(store, ARCHIVE, 30, now=LATER + timedelta(days=2)).objects == 1
    assert keys(store) == []


def test_a_run_that_was_rolled_back_from_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("one", "two"):
        run = open_on_current(store, name)
        seal_all(run)
        publish_run(run)
    assert prune(store, ARCHIVE, 1, now=LATER).retired == ()


@pytest.mark.parametrize("days", [0, -1, 0.5, float("nan")])
def test_nothing_younger_than_a_day_is_touched(days: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one day"):
        prune(Store(tmp_path), ARCHIVE, days)


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        prune(Store(tmp_path), "../x", 30)


def test_a_damaged_mark_deletes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = open_on_current(store, OLD_ID)
    store.create(f"{run.key}/retired.json", json.dumps({"at": "yesterday"}).encode())
    with pytest.raises(ContractError):
        prune(store, ARCHIVE, 30, now=LATER)
    assert len(keys(store)) == 2

"""Names, notes and severities stick to a cluster's id; the last word counts, and nothing is edited."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from damage_atlas.contracts import Ledger, Remark, Remarks, VersionRecord
from damage_atlas.errors import InputError
from damage_atlas.store import Store, publish_version
from damage_atlas.store.remarks import add_remark, read_remarks


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    publish_version(
        store,
        VersionRecord(
            version=1, archive="bridge", run_id="r", run_key="k", artifacts={}, ledger=Ledger(), clusters=3,
            next_cluster_id=4,
        ),
    )  # fmt: skip
    return store


def said(store: Store) -> Remarks:
    return Remarks(remarks=read_remarks(store, "bridge"))


def test_the_last_name_and_the_last_severity_count_and_notes_add_up(store: Store) -> None:
    for remark in (
        Remark(cluster_id=2, name="crack", said_by="Ann"),
        Remark(cluster_id=2, note="ask the owner", said_by="Ann"),
        Remark(cluster_id=3, name="moss", said_by="Bo"),
        Remark(cluster_id=2, name="map cracking", severity="4", said_by="Bo"),
        Remark(cluster_id=2, note="owner says 2019", said_by="Bo"),
    ):
        add_remark(store, "bridge", remark)
    remarks = said(store)
    assert [remarks.name(c) for c in (1, 2, 3)] == [None, "map cracking", "moss"] and remarks.severity(2) == "4"
    assert [r.note for r in remarks.of(2) if r.note] == ["ask the owner", "owner says 2019"]
    add_remark(store, "bridge", Remark(cluster_id=2, name="", severity="", said_by="Ann"))
    assert said(store).name(2) is None and said(store).severity(2) is None and len(said(store).of(2)) == 5


def test_remarks_at_the_same_moment_all_count(store: Store) -> None:
    remarks = [Remark(cluster_id=1, note=f"n{k}", said_by="Ann") for k in range(20)]
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda remark: add_remark(store, "bridge", remark), remarks))
    assert sorted(numbers) == list(range(1, 21)) and {r.note for r in said(store).of(1)} == {r.note for r in remarks}


@pytest.mark.parametrize(
    ("remark", "why"),
    [
        (Remark(cluster_id=4, name="x", said_by="Ann"), "no cluster 4; ids from 1 to 3"),
        (Remark(cluster_id=0, name="x", said_by="Ann"), "no cluster 0"),
        (Remark(cluster_id=1, said_by="Ann"), "needs a name, a note or a severity"),
    ],
)
def test_what_means_nothing_is_refused(store: Store, remark: Remark, why: str) -> None:
    with pytest.raises(InputError, match=why):
        add_remark(store, "bridge", remark)
    assert read_remarks(store, "bridge") == []


def test_an_archive_without_a_version_has_no_clusters(store: Store) -> None:
    with pytest.raises(InputError, match="no published version"):
        add_remark(store, "other", Remark(cluster_id=1, name="x", said_by="Ann"))

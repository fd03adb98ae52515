"""A decision about an asset: written once, carried over, shown by the next report."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from damage_atlas.cli import app
from damage_atlas.contracts import Decision, Ledger, VersionRecord
from damage_atlas.decide import decide, decisions
from damage_atlas.errors import ContractError, InputError
from damage_atlas.report import write_report
from damage_atlas.store import Run, Store, publish_version
from damage_atlas.store.decisions import last_decision, read_decisions, write_decision
from tests.lib.report.synthetic_run import Scene, make_run, page_path, read_report

ARCHIVE = "north-bridge"
ASSET = "bridge-1/span-2"


@pytest.fixture
def published(tmp_path: Path) -> Run:
    run = make_run(tmp_path, Scene(images=90, clusters=5, assets=4, hover_pictures=10))
    write_report(run)
    record = VersionRecord(
        version=2, archive=ARCHIVE, run_id=run.spec.run_id, run_key=run.key, artifacts={}, ledger=Ledger(), clusters=5,
        next_cluster_id=6,
    )  # fmt: skip
    publish_version(run.store, record)
    return run


def rewrite(run: Run) -> dict[str, object]:
    """The report of a run anew, as that of a later run would be."""
    for item in list(run.store.list(f"{run.key}/report")):
        run.store.delete(item.key)
    write_report(run)
    return next(row for row in read_report(run)["assets"] if row["asset_id"] == ASSET)


def test_it_is_carried_over_and_shown(published: Run) -> None:
    made = decide(published.store, ARCHIVE, ASSET, "defer", "A. Sato", "scaffold in May")
    assert (made["number"], made["version"], made["decision"]) == (1, 2, "defer")
    row = rewrite(published)
    assert (row["decision"], row["decided_by"], row["note"]) == ("defer", "A. Sato", "scaffold in May")
    assert made["score"] == pytest.approx(row["score"], rel=1e-4)
    page = page_path(published).read_text(encoding="utf-8")
    assert "deferred" in page and "A. Sato" in page and "scaffold in May" in page
    listed = [row["asset_id"] for row in read_report(published)["assets"]]
    assert listed[-1] == ASSET
    decide(published.store, ARCHIVE, ASSET, "visit", "B. Ito")
    assert rewrite(published)["decided_by"] == "B. Ito"
    assert [d["decision"] for d in decisions(published.store, ARCHIVE)] == ["visit"]
    decide(published.store, ARCHIVE, ASSET, "none", "B. Ito")
    assert rewrite(published)["decision"] == "none" and decisions(published.store, ARCHIVE) == []


def test_every_attempt_counts_the_decisions_of_the_first(published: Run) -> None:
    store = published.store
    for item in list(store.list(f"{published.key}/report")):
        if not item.key.endswith("plan.json"):
            store.delete(item.key)
    write_decision(store, ARCHIVE, Decision(asset_id=ASSET, decision="known", decided_by="A. Sato", version=2))
    write_report(published)
    row = next(row for row in read_report(published)["assets"] if row["asset_id"] == ASSET)
    assert row["decision"] == "none"


def test_records_are_numbered_and_a_race_takes_the_next_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    made = [Decision(asset_id=name, decision="visit", decided_by="x", version=1) for name in "ab"]
    assert write_decision(store, "bridge", made[0]) == 1
    seen = iter([0, 1])  # the first look is stale
    monkeypatch.setattr("damage_atlas.store.decisions.last_decision", lambda *_: next(seen))
    assert write_decision(store, "bridge", made[1]) == 2
    monkeypatch.undo()
    assert list(read_decisions(store, "bridge")) == ["a", "b"]
    assert list(read_decisions(store, "bridge", up_to=1)) == ["a"] and last_decision(store, "bridge") == 2
    assert last_decision(store, "other") == 0 and read_decisions(store, "other") == {}


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("archives/bridge/decisions/00000001.json", b"{}")
    with pytest.raises(ContractError, match=r"decisions/00000001\.json is damaged"):
        read_decisions(store, "bridge")


@pytest.mark.parametrize(
    ("asset", "what", "by", "says"),
    [
        ("bridge-1/span-22", "visit", "x", "Did you mean 'bridge-1/span-2'"),
        ("tower", "visit", "x", "It has 4 assets"),
        (ASSET, "ignore", "x", "Choose one of visit, defer, known, none"),
        (ASSET, "visit", " ", "who decides"),
    ],
)
def test_mistakes_are_said(published: Run, asset: str, what: str, by: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decide(published.store, ARCHIVE, asset, what, by)
    assert last_decision(published.store, ARCHIVE) == 0


def test_the_commands(published: Run) -> None:
    where = ["--store", str(published.store.root), "--archive", ARCHIVE]
    runner = CliRunner()
    done = runner.invoke(app, ["decide", ASSET, "known", "--by", "A. Sato", *where])
    assert done.exit_code == 0 and "decision 1 of north-bridge" in done.output
    listed = runner.invoke(app, ["decisions", "--json", *where])
    assert listed.exit_code == 0 and '"decided_by": "A. Sato"' in listed.output
    assert runner.invoke(app, ["decide", ASSET, "known", *where], env={"DAMAGE_ATLAS_USER": ""}).exit_code == 2

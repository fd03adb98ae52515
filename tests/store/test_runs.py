from __future__ import annotations

import json
from pathlib import Path

import pytest

from damage_atlas.contracts import IDS, Ledger, VersionRecord
from damage_atlas.errors import ContractError, InputError, PublishConflictError, SpecError
from damage_atlas.spec import RunSpec, Settings
from damage_atlas.store import Run, Store, current_version, open_run, promote_model, publish_version, start_run

SPEC = RunSpec(run_id="r1", kind="recluster", archive="bridge", images="/images", model="m")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(Store(tmp_path), SPEC)


def seal(run: Run, name: str = "catalog", data: bytes = b"rows") -> None:
    stage = run.stage(name)
    stage.write("table.bin", data)
    stage.seal(inputs=(), counts={"in": 1, "out": 1, "failed": 0})


def test_opening_again_goes_on(run: Run) -> None:
    assert open_run(run.store, SPEC).spec == SPEC
    assert Run.load(run.uri).spec == SPEC


def test_a_spec_changed_under_a_run_is_refused_by_name(run: Run) -> None:
    changed = SPEC.model_copy(update={"images": "/elsewhere"})
    with pytest.raises(SpecError, match=r"other settings \(images\)"):
        open_run(run.store, changed)


def test_resolved_settings_stay_as_first_opened(run: Run) -> None:
    later = SPEC.model_copy(update={"previous_version": 7, "model_version": "x"})
    assert open_run(run.store, later).spec == SPEC


def test_no_artifact_until_sealed(run: Run) -> None:
    run.stage("catalog").write("table.bin", b"rows")
    with pytest.raises(ContractError, match="not complete"):
        run.read("catalog", "table.bin")


def test_reads_what_was_sealed(run: Run) -> None:
    seal(run)
    assert run.read("catalog", "table.bin") == b"rows"


def test_a_changed_object_is_noticed(run: Run) -> None:
    seal(run)
    path = run.store.folder / run.artifact("catalog").outputs["table.bin"].key  # type: ignore[operator]
    path.write_bytes(b"rowz")
    with pytest.raises(ContractError, match="not what was sealed"):
        run.read("catalog", "table.bin")


def test_a_replaced_worker_cannot_write_into_its_successors_attempt(run: Run) -> None:
    stale = run.stage("catalog")
    stale.write("table.bin", b"stale")
    successor = Run(run.store, run.key, run.spec, attempt=run.stage("catalog").next_attempt())
    assert successor.attempt == 2
    seal(successor, data=b"fresh")
    artifact = stale.seal(inputs=(), counts={"in": 1, "out": 1, "failed": 0})
    assert artifact.attempt == 2, "the first seal wins, and the stale worker is told so"
    assert run.read("catalog", "table.bin") == b"fresh"


def test_seal_refuses_lost_rows(run: Run) -> None:
    with pytest.raises(ContractError, match="lost rows"):
        run.stage("catalog").seal(inputs=(), counts={"in": 2, "out": 1, "failed": 0})


def test_tables_must_have_the_contracts_columns(run: Run) -> None:
    with pytest.raises(ContractError, match="columns differ"):
        run.stage("catalog").write_table("observations.parquet", IDS.empty_table())


def test_another_schema_version_is_refused(run: Run) -> None:
    seal(run)
    path = run.store.folder / run.key / "catalog" / "artifact.json"  # type: ignore[operator]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(ContractError, match="schema version 99"):
        run.artifact("catalog")


@pytest.mark.parametrize("uri", ["file:///nowhere", "file:///a/archives/b", "file:///x/archives/b/runs/none"])
def test_addresses_that_are_no_run(uri: str) -> None:
    with pytest.raises(SpecError):
        Run.load(uri)


def test_an_address_from_elsewhere_must_be_a_run_of_this_store(run: Run, tmp_path: Path) -> None:
    assert Run.within(run.store, run.uri).spec == SPEC
    other = Store(tmp_path / "other")
    copied = run.key.replace(SPEC.run_id, "another-id")
    run.store.create(f"{copied}/run.yaml", run.store.read(f"{run.key}/run.yaml"))
    for store, uri in (
        (other, run.uri),
        (run.store, run.store.uri(copied)),  # its run.yaml is another run's
        (run.store, f"{run.store.root}/x/{run.key}"),
        (run.store, f"{run.store.root}/archives/../runs/{SPEC.run_id}"),
        (run.store, f"{run.store.root}/archives/a/runs/b\0c"),
        (run.store, "/etc/passwd"),
    ):
        with pytest.raises(SpecError):
            Run.within(store, uri)


def test_the_plan_of_the_first_attempt_stays(run: Run) -> None:
    assert run.stage("embed").plan({"rows": 5}) == {"rows": 5}
    assert run.stage("embed").plan({"rows": 9}) == {"rows": 5}
    assert run.stage("embed").next_attempt() == 1


def record(run_id: str, version: int = 1) -> VersionRecord:
    return VersionRecord(
        version=version, archive="bridge", run_id=run_id, run_key="k", artifacts={}, ledger=Ledger(), clusters=0,
        next_cluster_id=1,
    )  # fmt: skip


def test_of_two_runs_one_publishes(run: Run) -> None:
    publish_version(run.store, record("r1"))
    publish_version(run.store, record("r1"))  # said twice by the same run: content
    with pytest.raises(PublishConflictError, match="published by run r1"):
        publish_version(run.store, record("r2"))
    assert current_version(run.store, "bridge") == 1


@pytest.mark.parametrize(
    "ledger",
    [Ledger(listed=2, embedded=1), Ledger(listed=1, quarantined=1), Ledger(listed=0, embedded=1)],
)
def test_the_ledger_must_add_up(ledger: Ledger) -> None:
    with pytest.raises(ContractError, match="does not add up"):
        ledger.check("here")


def start(store: Store, **changes: object) -> Run:
    arguments = {"kind": "run", "archive": "bridge", "images": "/i", "model": "m", "settings": Settings()}
    return start_run(store, **(arguments | changes))  # type: ignore[arg-type]


def test_an_interrupted_run_is_gone_on_with(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = start(store)
    assert start(store).uri == first.uri
    other = start(store, images="/other")
    assert other.uri != first.uri


def test_a_finished_run_is_not_reopened(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = start(store)
    first.stage("publish").seal(inputs=(), counts={"in": 1, "out": 1, "failed": 0})
    assert start(store).uri != first.uri


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no promoted version"):
        start(Store(tmp_path), kind="recluster")
    promote_model(Store(tmp_path), "m", "v1", "test")
    with pytest.raises(InputError, match="m@v1"):
        start(Store(tmp_path), kind="recluster")

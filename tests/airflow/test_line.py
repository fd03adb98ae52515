"""The main job through a real Airflow scheduler and a real Ray of two nodes, the store on a real S3 server."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from damage_atlas.pipeline import run_pipeline
from damage_atlas.publish import verify_run
from damage_atlas.query import published_run
from damage_atlas.spec import ArchiveSpec, Settings, dump_yaml, with_overrides
from damage_atlas.store import Run, Store, start_run
from infra.local.airflow import LocalAirflow
from infra.local.stack import LocalStack, local_stack
from tests.support.line import LONG, finish
from tests.support.s3_server import S3Server
from tests.support.small_archive import make_delivery, make_labelled

pytestmark = LONG

ARCHIVE = ArchiveSpec(
    archive="small",
    images="small/archive",
    model="small",
    schedule="0 2 * * *",
    timezone="Europe/Berlin",
    training_images="small/labelled",
    training_settings=with_overrides(
        Settings(),
        ["train.input_size=32", "train.iterations=30", "train.batch_size=24", "train.learning_rate=0.002"],
    ),
    settings=with_overrides(Settings(), ["catalog.labels=none", "catalog.deliveries=folder"]),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_labelled(folder / "small" / "labelled")
    make_delivery(folder / "small" / "archive", "d1", 0, each=12)
    make_delivery(folder / "small" / "archive", "d2", 50, each=5)
    (folder / "archives").mkdir()
    (folder / "archives" / "small.yaml").write_text(dump_yaml(ARCHIVE))
    return folder


@pytest.fixture(scope="module")
def store(s3_server: S3Server) -> Iterator[Store]:
    s3_server.create_bucket("the-line")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.env().items():
            patch.setenv(name, value)
        yield Store("s3://the-line/atlas")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stack")


@pytest.fixture(scope="module")
def stack(data: Path, store: Store, s3_server: S3Server, root: Path) -> Iterator[LocalStack]:
    with local_stack(root, store.root, data, data / "archives", env=s3_server.env()) as running:
        running.airflow.wait_for_dags({"train_model", "recluster_small"})
        yield running


@pytest.fixture(scope="module")
def airflow(stack: LocalStack) -> LocalAirflow:
    return stack.airflow


@pytest.fixture(scope="module")
def runs(airflow: LocalAirflow) -> dict[str, str]:
    """The line, once: Airflow run ids by what they did."""
    ids = {"train": airflow.trigger("train_model", {"archive": "small"})}
    finish(airflow, "train_model", ids["train"], timeout_s=900)
    for delivery in ("d1", "d2"):
        ids[delivery] = airflow.trigger("recluster_small", {"delivery": delivery})
        finish(airflow, "recluster_small", ids[delivery], timeout_s=900)
    return ids


def test_two_versions_are_published_and_verify(runs: dict[str, str], store: Store) -> None:
    for version, counts in ((1, (36, 36, 0)), (2, (51, 15, 36))):
        run = published_run(store, "small", version)
        assert verify_run(run) == []
        ledger = run.artifact("embed").facts["ledger"]
        assert (ledger["listed"], ledger["embedded"], ledger["reused"]) == counts


def test_the_tables_are_those_of_one_process(runs: dict[str, str], store: Store, data: Path, tmp_path: Path) -> None:
    local = Store(tmp_path)
    steps = [("train", None, "labelled"), ("recluster", "d1", "archive"), ("recluster", "d2", "archive")]
    for number, (kind, delivery, folder) in enumerate(steps):
        run = start_run(
            local,
            kind=kind,  # type: ignore[arg-type]
            archive="small",
            model="small",
            images=str(data / "small" / folder),
            settings=ARCHIVE.training_settings if kind == "train" else ARCHIVE.settings,
            delivery=delivery,
            run_id=f"local-{number}",
        )
        list(run_pipeline(run))
    for version in (1, 2):
        ours, theirs = published_run(store, "small", version), published_run(local, "small", version)
        for stage, table in (("cluster", "points"), ("cluster", "clusters"), ("cluster", "lineage")):
            name = f"{table}.parquet"
            assert ours.read_table(stage, name).equals(theirs.read_table(stage, name)), (version, name)


def test_the_task_log_holds_the_jobs_log(runs: dict[str, str], airflow: LocalAirflow) -> None:
    log = airflow.task_log("train_model", runs["train"], "train")
    assert "train: 30 of 30 iterations" in log and "rank 1 of 2" in log


def test_xcom_carries_status_and_addresses(runs: dict[str, str], airflow: LocalAirflow, store: Store) -> None:
    result = airflow.xcom("recluster_small", runs["d2"], "publish")
    assert result["version"] == 2 and result["run_uri"].startswith(store.root)
    assert b"<html" in store.read(result["report"].removeprefix(f"{store.root}/"))[:200]
    assert Run.load(result["run_uri"]).spec.delivery == "d2"
    ledger = airflow.xcom("recluster_small", runs["d2"], "embed")["ledger"]
    assert ledger == Run.load(result["run_uri"]).artifact("embed").facts["ledger"] and ledger["listed"] > 0


def test_airflow_shows_the_report(runs: dict[str, str], airflow: LocalAirflow, store: Store) -> None:
    result = airflow.xcom("recluster_small", runs["d2"], "publish")
    query = urlencode({"dag_id": "recluster_small", "run_id": runs["d2"]})
    request = urllib.request.Request(f"{airflow.url}/damage-atlas/report?{query}", headers=airflow.bearer)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.read() == store.read(result["report"].removeprefix(f"{store.root}/"))
    links = airflow.get(f"/dags/recluster_small/dagRuns/{quote(runs['d2'])}/taskInstances/publish/links")["extra_links"]
    assert links["Report"].endswith("/plugin/damage-atlas-report")


def test_what_is_published_is_verified_on_ray(runs: dict[str, str], airflow: LocalAirflow) -> None:
    run_id = airflow.trigger("verify_published")
    finish(airflow, "verify_published", run_id, timeout_s=600)
    log = airflow.task_log("verify_published", run_id, "verify", map_index=0)
    assert '"archive": "small", "version": 2, "problems": 0' in log


def test_no_secret_is_left_anywhere(
    runs: dict[str, str], stack: LocalStack, store: Store, s3_server: S3Server, root: Path
) -> None:
    """Neither in what Airflow keeps (database, XCom, logs), nor in what Ray does, nor in the store."""
    jobs = urllib.request.Request(f"{stack.ray.url}/api/jobs/", headers={"Authorization": f"Bearer {stack.ray.token}"})
    with urllib.request.urlopen(jobs, timeout=60) as answer:
        kept = {"Ray's jobs": answer.read()}
    folders = (root / "airflow", stack.ray.session_logs)
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    kept |= {str(file): file.read_bytes() for file in files if file.name != "secrets.json"}
    kept |= {item.key: store.read(item.key) for item in store.list()}
    assert b"submission_id" in kept["Ray's jobs"] and len(kept) > 200
    assert any(name.endswith(".db") for name in kept) and any("job-driver" in name for name in kept)
    for name, secret in (("S3 key", s3_server.secret_key), ("Ray token", stack.ray.token)):
        assert [where for where, data in kept.items() if secret.encode() in data] == [], name


def test_bad_input_is_not_tried_again(runs: dict[str, str], airflow: LocalAirflow) -> None:
    run_id = airflow.trigger("recluster_small", {"delivery": "no-such-delivery"})
    assert airflow.wait_for_run("recluster_small", run_id, timeout_s=420) == "failed"
    task = next(t for t in airflow.task_instances("recluster_small", run_id) if t["task_id"] == "catalog")
    assert (task["state"], task["try_number"]) == ("failed", 1)
    log = airflow.task_log("recluster_small", run_id, "catalog")
    assert "no-such-delivery" in log and "d1" in log, "the error names the deliveries there are"


def test_the_archives_dag_says_when_and_for_whom(airflow: LocalAirflow) -> None:
    dag = airflow.get("/dags/recluster_small/details")
    assert dag["max_active_runs"] == 1 and dag["catchup"] is False and dag["owners"] == ["inspection"]
    assert "0 2 * * *" in str(dag) and "publishes the next version" in dag["doc_md"].replace("\n", " ")
    assert set(dag["params"]) == {"delivery", "model_version"}

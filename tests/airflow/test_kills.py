"""Steel through the DAGs, the store on a real S3 server, while its processes are killed: nothing is lost or done twice.

Airflow believes in a task whose worker is dead for 300 s by default; here for 20 s, so that the trial ends today.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from damage_atlas.pipeline import run_pipeline
from damage_atlas.publish import verify_run
from damage_atlas.query import published_run
from damage_atlas.spec import ArchiveSpec, Settings, dump_yaml, with_overrides
from damage_atlas.store import Store, list_versions, start_run
from infra.local.processes import commands
from infra.local.stack import LocalStack, local_stack
from tests.support.line import LONG, finish
from tests.support.s3_server import S3Server

pytestmark = [*LONG, pytest.mark.data]

ARCHIVE = ArchiveSpec(
    archive="steel",
    images="steel-neu",
    model="steel",
    training_images="steel-neu",
    training_settings=with_overrides(
        Settings(), ["train.iterations=120", "train.input_size=96", "train.checkpoint_every=20"]
    ),
    settings=with_overrides(Settings(), ["catalog.labels=folder", "embed.rows_per_part=64"]),
)
PATIENCE = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
}


@pytest.fixture(scope="module")
def store(s3_server: S3Server) -> Iterator[Store]:
    s3_server.create_bucket("kills")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.env().items():
            patch.setenv(name, value)
        yield Store("s3://kills/atlas")


@pytest.fixture(scope="module")
def stack(
    real_data: Path, store: Store, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    root = tmp_path_factory.mktemp("stack")
    archives = root / "archives"
    archives.mkdir()
    (archives / "steel.yaml").write_text(dump_yaml(ARCHIVE))
    with local_stack(root, store.root, real_data, archives, env=s3_server.env() | PATIENCE) as running:
        running.airflow.wait_for_dags({"train_model", "recluster_steel"})
        yield running


def jobs(stack: LocalStack) -> dict[str, str]:
    """Status of every Ray job, by its submission id."""
    request = urllib.request.Request(
        f"{stack.ray.url}/api/jobs/", headers={"Authorization": f"Bearer {stack.ray.token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return {job["submission_id"]: job["status"] for job in json.load(answer) if job["submission_id"]}


def until(ready: Callable[[], Any], what: str, timeout_s: float = 300) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {timeout_s:.0f} s for {what}")


def tries(stack: LocalStack, dag: str, run_id: str) -> dict[str, int]:
    return {task["task_id"]: task["try_number"] for task in stack.airflow.task_instances(dag, run_id)}


@pytest.fixture(scope="module")
def runs(stack: LocalStack, store: Store) -> dict[str, str]:
    """The line, with a kill in each of its parts; Airflow run ids by DAG."""
    airflow = stack.airflow

    # The Ray job's driver, in the middle of training.
    trained = airflow.trigger("train_model", {"archive": "steel"})
    until(lambda: any(".safetensors" in o.key for o in store.list("models/steel")), "a checkpoint")
    (driver,) = [p for p in commands("-m workers.train") if p.name().startswith("python")]
    driver.kill()
    finish(airflow, "train_model", trained, timeout_s=1200)
    assert tries(stack, "train_model", trained)["train"] == 2

    # The Airflow worker, while its task has submitted a job and not yet let go of it.
    published = airflow.trigger("recluster_steel")
    state = lambda task: airflow.task_states("recluster_steel", published).get(task)  # noqa: E731
    until(lambda: state("catalog") == "running", "catalog to run")
    worker = until(airflow.task_processes, "the process of the task")
    for process in worker:
        process.kill()

    # The triggerer, while a job of embed runs.
    until(lambda: state("embed") == "deferred" and commands("-m workers.embed"), "embed's job", timeout_s=600)
    airflow.kill_component("triggerer")
    time.sleep(5)
    airflow.start_component("triggerer")
    finish(airflow, "recluster_steel", published, timeout_s=1200)
    return {"train_model": trained, "recluster_steel": published}


def test_the_tables_are_those_of_an_undisturbed_process(
    runs: dict[str, str], store: Store, real_data: Path, tmp_path: Path
) -> None:
    local = Store(tmp_path)
    for kind, settings in (("train", ARCHIVE.training_settings), ("recluster", ARCHIVE.settings)):
        images = str(real_data / "steel-neu")
        run = start_run(local, kind=kind, archive="steel", model="steel", images=images, settings=settings)  # type: ignore[arg-type]
        list(run_pipeline(run))
    ours, theirs = published_run(store, "steel"), published_run(local, "steel")
    for name in ("points.parquet", "clusters.parquet", "lineage.parquet"):
        assert ours.read_table("cluster", name).equals(theirs.read_table("cluster", name)), name
    catalog = [run.read_table("catalog", "observations.parquet") for run in (ours, theirs)]
    assert catalog[0].equals(catalog[1])


def test_one_version_and_it_verifies(runs: dict[str, str], store: Store) -> None:
    assert list_versions(store, "steel") == [1]
    assert verify_run(published_run(store, "steel")) == []


def test_no_orphan_and_no_job_twice(runs: dict[str, str], stack: LocalStack) -> None:
    found = jobs(stack)
    assert set(found.values()) <= {"SUCCEEDED", "FAILED"}, found
    (failed,) = [job for job, status in found.items() if status == "FAILED"]
    assert failed.startswith("train_model-") and "-train-" in failed and failed.endswith("-1"), found
    succeeded = [job.rpartition("-")[0] for job, status in found.items() if status == "SUCCEEDED"]
    assert len(succeeded) == len(set(succeeded)) == 9, found
    assert commands("-m workers.") == []

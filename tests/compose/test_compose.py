"""docker-compose.yml in a real engine, from nothing to a published report, through losses and restarts.

`make test-compose` (40 minutes on two cores). It needs Docker, builds the two images, and leaves no container,
volume or network behind; a stack of yours keeps running, under its own project name.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from infra.local.stack import REPOSITORY
from tests.compose.stack import ComposeStack, until

pytestmark = [
    pytest.mark.skipif(not os.environ.get("DAMAGE_ATLAS_COMPOSE"), reason="needs Docker: run `make test-compose`"),
    pytest.mark.timeout(5400),
]

DAG = "recluster_demo"
STORE = "s3://damage-atlas"
SIZE = 240  # images, and three large photos of a few hundred tiles each
ITERATIONS = 150
LONG_ITERATIONS = 500  # still in flight when new images have been built

# Ends when a rank of the training works on this node.
WAIT_FOR_RANK = """
import glob, time
give_up_at = time.monotonic() + 300
while time.monotonic() < give_up_at:
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if "RayTrainWorker" in open(path).read():
                raise SystemExit
        except OSError:
            pass  # a process that has just ended
    time.sleep(0.2)
raise SystemExit("no rank of the training came to this node")
"""
LIVE_JOBS = """
import json, os, urllib.request
token = {"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]}
with urllib.request.urlopen(urllib.request.Request("http://ray-head:8265/api/jobs/", headers=token)) as answer:
    jobs = json.load(answer)
print(json.dumps([job["submission_id"] for job in jobs if job["status"] in ("PENDING", "RUNNING")]))
"""
DIGEST_IN_S3 = """
import boto3, hashlib
body = boto3.client("s3").get_object(Bucket={bucket!r}, Key={key!r})["Body"].read()
assert b"<html" in body[:300], body[:300]
print(hashlib.sha256(body).hexdigest())
"""


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[ComposeStack]:
    """An empty stack; what its containers said is kept when the test fails."""
    stack = ComposeStack(tmp_path / "checkout")
    stack.remove()
    demo = stack.folder / "var" / "images" / "demo"
    make = ["damage-atlas", "demo", "--images-only", "--out", str(demo), "--size", str(SIZE), "--deliveries", "2"]
    subprocess.run([str(Path(sys.executable).parent / make[0]), *make[1:]], check=True)
    try:
        yield stack
    finally:
        (tmp_path / "containers.log").write_text(stack.compose("logs", "--no-color", "--timestamps"))
        say(f"what the containers said: {tmp_path / 'containers.log'}")
        stack.remove()


def start(stack: ComposeStack, dag: str, conf: dict[str, str | int]) -> str:
    run_id = stack.airflow.trigger(dag, conf)
    say(f"{dag} {conf}: run {run_id}")
    return run_id


def finish(stack: ComposeStack, dag: str, run_id: str, timeout_s: float = 1500) -> None:
    """Wait for the run's end; the API may be away now and then."""
    state = until(
        lambda: (found := stack.airflow.run_state(dag, run_id)) in ("success", "failed") and found, run_id, timeout_s
    )
    tasks = {task["task_id"]: (task["state"], task["try_number"]) for task in stack.airflow.task_instances(dag, run_id)}
    say(f"{dag} {run_id}: {state} {tasks}")
    if state == "failed":
        failed = [task for task, (state, _) in tasks.items() if state == "failed"]
        pytest.fail("\n".join(stack.airflow.task_log(dag, run_id, task, tasks[task][1])[-5000:] for task in failed))


def wait_for_stage(stack: ComposeStack, dag: str, run_id: str, stage: str) -> None:
    """Until the stage's task has let go of its Ray job and waits for it."""
    until(lambda: stack.airflow.task_states(dag, run_id).get(stage) == "deferred", f"{stage} to run on Ray", 600)


def healthy(stack: ComposeStack, *services: str, timeout_s: float = 420) -> None:
    for service in services or stack.services:
        until(lambda service=service: stack.health(service) == "healthy", f"{service} to be healthy", timeout_s)


def start_training(stack: ComposeStack, iterations: int = ITERATIONS) -> str:
    """A training run that has begun to learn, one rank of it on the Ray worker."""
    stack.airflow.wait_for_dags({"train_model", DAG}, timeout_s=180)
    run_id = start(stack, "train_model", {"archive": "demo", "iterations": iterations})
    wait_for_stage(stack, "train_model", run_id, "train")
    stack.python("ray-worker", WAIT_FOR_RANK)
    said = f" of {iterations} iterations"
    until(lambda: said in stack.airflow.task_log("train_model", run_id, "train"), "the first iterations", 300)
    return run_id


def deliveries(stack: ComposeStack) -> list[str]:
    archive = stack.folder / "var" / "images" / "demo" / "images" / "archive"
    return sorted(path.name for path in archive.iterdir() if path.is_dir())


def check_published(stack: ComposeStack, run_ids: list[str]) -> None:
    """Each run is one version, every digest matches, and the report is in the S3 server, the one that Airflow shows."""
    atlas = ("exec", "-T", "ray-head", "damage-atlas")
    history = json.loads(stack.compose(*atlas, "history", "--store", STORE, "--archive", "demo", "--json"))
    records = {record["version"]: record for record in history}
    assert set(records) == set(range(1, len(run_ids) + 1))
    for version, run_id in enumerate(run_ids, 1):
        said = stack.compose(*atlas, "verify", "--store", STORE, "--archive", "demo", "--version", str(version))
        assert "every digest matches" in said
        result = stack.airflow.xcom(DAG, run_id, "publish")
        assert result["version"] == version
        assert result["run_uri"].endswith(records[version]["run_id"])
        bucket, _, key = result["report"].removeprefix("s3://").partition("/")
        digest = stack.python("ray-head", DIGEST_IN_S3.format(bucket=bucket, key=key)).strip()
        query = urlencode({"dag_id": DAG, "run_id": run_id})
        page = urllib.request.Request(f"{stack.airflow.url}/damage-atlas/report?{query}", headers=stack.airflow.bearer)
        with urllib.request.urlopen(page, timeout=60) as answer:
            assert hashlib.sha256(answer.read()).hexdigest() == digest
    say(f"{len(run_ids)} versions verified; their reports are in the S3 server")


def check_well(stack: ComposeStack) -> None:
    """All services healthy, the doctor content, no Ray job left over."""
    healthy(stack)
    stack.compose(
        *("exec", "-T", "ray-head", "damage-atlas", "doctor"),
        *("--ray", "http://ray-head:8265", "--airflow", "http://airflow-api-server:8080"),
    )
    # The reaper's own time is 10 minutes; nothing here should need it. `verify_published` and its kind are paused.
    until(lambda: json.loads(stack.python("ray-head", LIVE_JOBS)) == [], "Ray without a job", 60)
    say(f"healthy, and no Ray job is left: {', '.join(stack.services)}")


def test_a_lost_worker_and_restarts_of_everything_cost_no_version(stack: ComposeStack) -> None:
    first, second = deliveries(stack)
    say("make up")
    stack.take_files()
    stack.up()

    training = start_training(stack)
    say("the Ray worker is lost, with a rank of the training on it")
    stack.kill("ray-worker")
    finish(stack, "train_model", training)
    assert stack.health("ray-worker") == "exited"
    stack.compose("up", "-d", "ray-worker")
    healthy(stack, "ray-worker")

    # The archive's own DAG was paused, so the new model has not started it.
    one = start(stack, DAG, {"delivery": first})
    finish(stack, DAG, one)
    two = start(stack, DAG, {"delivery": second})
    wait_for_stage(stack, DAG, two, "catalog")
    for service in stack.services:
        say(f"restarting {service}")
        stack.compose("restart", service)
        healthy(stack, service)
    finish(stack, DAG, two)
    check_published(stack, [one, two])
    check_well(stack)

    say("make down, make up: a new day on the same volumes")
    stack.down()
    stack.up()
    check_published(stack, [one, two])
    check_well(stack)


def test_an_upgrade_with_a_job_in_flight_loses_nothing(stack: ComposeStack) -> None:
    first, second = deliveries(stack)
    before = earlier_code()
    say(f"make up at {before}")
    stack.take_files(before)
    stack.up()
    old = {service: stack.container(service) for service in stack.services}

    training = start_training(stack, LONG_ITERATIONS)
    say("make up at this checkout, while it trains")
    stack.take_files()
    stack.up()
    renewed = sorted(service for service, container in old.items() if stack.container(service) != container)
    say(f"new containers: {', '.join(renewed)}")
    assert {"ray-head", "ray-worker", "airflow-scheduler", "airflow-triggerer"} <= set(renewed)
    assert stack.airflow.run_state("train_model", training) == "running", "it was to be in flight"
    finish(stack, "train_model", training)
    runs = []
    for delivery in (first, second):
        runs.append(start(stack, DAG, {"delivery": delivery}))
        finish(stack, DAG, runs[-1])
    check_published(stack, runs)
    check_well(stack)


def earlier_code() -> str:
    """The revision to upgrade from: the one before the newest commit that the images show."""
    if given := os.environ.get("UPGRADE_FROM"):
        return given
    git = ["git", "-C", str(REPOSITORY), "log", "-1"]
    newest = ["--format=%H", "--", "lib/damage_atlas", "workers"]
    changed = subprocess.run([*git, *newest], capture_output=True, text=True, check=True).stdout.strip()
    return subprocess.run(
        [*git, "--format=%h", f"{changed}^"], capture_output=True, text=True, check=True
    ).stdout.strip()

"""The bridge under a real Airflow scheduler and triggerer: what a person and a crash do to a task and its job."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version

from airflow_ray_jobs.client import JobRequest, RayJobsClient
from infra.local.airflow import LocalAirflow
from infra.local.ray_cluster import LocalRay
from tests.airflow_ray_jobs.conftest import REPOSITORY, wait_for

DAGS = '''
from datetime import timedelta
from airflow.sdk import DAG, task
from airflow_ray_jobs import RayJobOperator, RayReaperOperator

# The driver holds the CPU of one node, so the remote function runs on the other.
FAR_AWAY = """
import ray, sys
ray.init()
@ray.remote(num_cpus=1)
def far():
    print("the crane is gone", file=sys.stderr, flush=True)
    raise ValueError("seven")
ray.get(far.remote())
"""

def job(dag_id, entrypoint, tasks=1, **settings):
    with DAG(dag_id, schedule=None, default_args={"retry_delay": timedelta(seconds=1)}):
        before = None
        for number in range(tasks):
            task = RayJobOperator(task_id=f"job{number}" if tasks > 1 else "job", entrypoint=entrypoint,
                                  submission_id=f"{dag_id}-{{{{ run_id }}}}-{number}", **settings)
            before and before >> task
            before = task

job("passes", """echo hello from $RAY_JOB_ATTEMPT; echo 'RAY_JOB_RESULT {"uri": "s3://b/{attempt}"}'""")
job("recovers", """[ {attempt} -gt 1 ] || { echo ValueError: seven; exit 3; }""", retries=1)
job("rejects", """echo 'RAY_JOB_FAILURE {"retryable": false, "message": "no images"}'; exit 2""", retries=3)
job("lasts", "sleep 300")
job("goes", "sleep 300")
job("fails_far_away", f"python -c '{FAR_AWAY}'", num_cpus=1)
job("survives", "echo begun; sleep 45; echo done")
job("short", "true", tasks=3)

with DAG("decorated", schedule=None, default_args={"retry_delay": timedelta(seconds=1)}):
    @task
    def number():
        return 7

    @task.ray_job(retries=1, same_versions=["airflow-ray-jobs"])
    def job(n, ti):
        return f"""[ {{attempt}} -gt 1 ] || exit 3; echo 'RAY_JOB_RESULT {{"n": {n}, "try": {ti.try_number}}}'"""

    job(number())

with DAG("reaper", schedule=None):
    RayReaperOperator(task_id="reap", grace=timedelta(seconds=1), confirm_after=timedelta(seconds=2))
'''
DAG_IDS = {
    "passes",
    "recovers",
    "rejects",
    "lasts",
    "goes",
    "fails_far_away",
    "survives",
    "short",
    "decorated",
    "reaper",
}
# Whether this Airflow has a task state store: without one a new try cannot know that a person cleared the task.
REMEMBERS = Version(airflow_version) >= Version("3.3.0")
HEALTH_CHECK_S = 15  # a dead triggerer is missed after this; Airflow's default is 30


@pytest.fixture(scope="module")
def airflow(local_ray: LocalRay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    root = tmp_path_factory.mktemp("airflow")
    (root / "dags").mkdir()
    (root / "dags" / "bridge.py").write_text(DAGS)
    env = {
        "PYTHONPATH": f"{REPOSITORY / 'lib'}:{REPOSITORY}",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": str(HEALTH_CHECK_S),
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "5",  # Airflow's default, under which a quick event is a lost task
        "AIRFLOW__API__ENABLE_XCOM_DESERIALIZE_SUPPORT": "True",  # Airflow 3.0 gives XComs as text otherwise
        **local_ray.airflow_env,
    }
    begin = time.monotonic()
    with LocalAirflow(root / "home", root / "dags", env=env) as airflow:
        print(f"\nAirflow up in {time.monotonic() - begin:.1f} s")
        airflow.wait_for_dags(DAG_IDS)
        yield airflow


def submitted_job(airflow: LocalAirflow, dag_id: str, run_id: str) -> str:
    """Submission id of the job that the task's log names, once the task waits for it."""
    deadline = time.monotonic() + 90
    said, log = "Submitted Ray job ", ""
    while said not in log:
        assert time.monotonic() < deadline, f"the task was not deferred, or does not say what it waits for: {log}"
        airflow.check()
        time.sleep(0.5)
        if airflow.task_states(dag_id, run_id).get("job") == "deferred":
            log = airflow.task_log(dag_id, run_id, "job")  # which may come later than the state
    return log.split(said)[1].split(":")[0]


def tries(airflow: LocalAirflow, dag_id: str, run_id: str) -> int:
    return int(airflow.task_instances(dag_id, run_id)[0]["try_number"])


def test_success_then_cleared(airflow: LocalAirflow) -> None:
    run_id = airflow.trigger("passes")
    assert airflow.wait_for_run("passes", run_id, 120) == "success"
    assert airflow.xcom("passes", run_id, "job") == {"uri": "s3://b/1"}
    log = airflow.task_log("passes", run_id, "job")
    assert "hello from 1" in log
    assert "is SUCCEEDED" in log
    airflow.clear_task("passes", run_id, "job")
    assert airflow.wait_for_run("passes", run_id, 120) == "success"
    assert airflow.xcom("passes", run_id, "job") == {"uri": "s3://b/2" if REMEMBERS else "s3://b/1"}


def test_a_retry_does_not_adopt_the_failed_job(airflow: LocalAirflow) -> None:
    run_id = airflow.trigger("recovers")
    assert airflow.wait_for_run("recovers", run_id, 150) == "success"
    assert tries(airflow, "recovers", run_id) == 2
    assert "ValueError: seven" in airflow.task_log("recovers", run_id, "job", try_number=1)


def test_bad_input_is_not_retried(airflow: LocalAirflow) -> None:
    run_id = airflow.trigger("rejects")
    assert airflow.wait_for_run("rejects", run_id, 120) == "failed"
    assert tries(airflow, "rejects", run_id) == 1
    assert "no images" in airflow.task_log("rejects", run_id, "job")


def test_a_decorated_function(airflow: LocalAirflow) -> None:
    run_id = airflow.trigger("decorated")
    assert airflow.wait_for_run("decorated", run_id, 150) == "success"
    assert airflow.xcom("decorated", run_id, "job") == {"n": 7, "try": 2}
    assert "Same versions in Airflow and on Ray" in airflow.task_log("decorated", run_id, "job", try_number=2)


def test_marking_failed_stops_the_job(airflow: LocalAirflow, client: RayJobsClient) -> None:
    run_id = airflow.trigger("lasts")
    submission_id = submitted_job(airflow, "lasts", run_id)
    wait_for(client, submission_id, "RUNNING")
    begin = time.monotonic()
    airflow.set_task_state("lasts", run_id, "job", "failed")
    assert wait_for(client, submission_id, timeout_s=60).status == "STOPPED"
    print(f"\nmarked failed; Ray job stopped after {time.monotonic() - begin:.1f} s")


@pytest.mark.skipif(not REMEMBERS, reason="an older Airflow may adopt the job instead")
def test_clearing_stops_the_job_and_runs_the_next_attempt(airflow: LocalAirflow, client: RayJobsClient) -> None:
    run_id = airflow.trigger("lasts")
    submission_id = submitted_job(airflow, "lasts", run_id)
    wait_for(client, submission_id, "RUNNING")
    begin = time.monotonic()
    airflow.clear_task("lasts", run_id, "job")
    assert wait_for(client, submission_id, timeout_s=60).status == "STOPPED"
    print(f"\ncleared; Ray job stopped after {time.monotonic() - begin:.1f} s")
    wait_for(client, submission_id[:-1] + "2", "RUNNING", timeout_s=90)
    submitted_job(airflow, "lasts", run_id)
    airflow.set_task_state("lasts", run_id, "job", "failed")
    wait_for(client, submission_id[:-1] + "2")


def test_deleting_the_run_stops_the_job(airflow: LocalAirflow, client: RayJobsClient) -> None:
    run_id = airflow.trigger("lasts")
    submission_id = submitted_job(airflow, "lasts", run_id)
    wait_for(client, submission_id, "RUNNING")
    begin = time.monotonic()
    airflow.delete_run("lasts", run_id)
    assert wait_for(client, submission_id, timeout_s=60).status == "STOPPED"
    print(f"\nrun deleted; Ray job stopped after {time.monotonic() - begin:.1f} s")


def test_deleting_the_dag_stops_the_job(airflow: LocalAirflow, client: RayJobsClient) -> None:
    submission_id = submitted_job(airflow, "goes", airflow.trigger("goes"))
    wait_for(client, submission_id, "RUNNING")
    begin = time.monotonic()
    airflow.delete_dag("goes")
    assert wait_for(client, submission_id, timeout_s=60).status == "STOPPED"
    print(f"\nDAG deleted; Ray job stopped after {time.monotonic() - begin:.1f} s")


def test_the_end_of_a_remote_worker_s_log_is_in_the_error(airflow: LocalAirflow) -> None:
    """On another node than the driver's, of which Ray itself only says that the task failed."""
    run_id = airflow.trigger("fails_far_away")
    assert airflow.wait_for_run("fails_far_away", run_id, 150) == "failed"
    log = airflow.task_log("fails_far_away", run_id, "job")
    error = log[log.index("AirflowException") :]
    assert "the crane is gone" in error and "ValueError: seven" in error


def test_the_reaper_stops_what_no_task_waits_for(airflow: LocalAirflow, client: RayJobsClient) -> None:
    orphaned, healthy = airflow.trigger("lasts"), airflow.trigger("lasts")
    jobs = {run_id: submitted_job(airflow, "lasts", run_id) for run_id in (orphaned, healthy)}
    labels = client.job(jobs[orphaned]).metadata  # type: ignore[union-attr]
    client.submit(JobRequest("foreign", "sleep 300", {}, {}))
    client.submit(JobRequest("of-another-airflow", "sleep 300", {}, {**labels, "airflow_instance": "another"}))
    for submission_id in (*jobs.values(), "foreign", "of-another-airflow"):
        wait_for(client, submission_id, "RUNNING")
    airflow.kill_component("triggerer")  # else the trigger itself hears of the end of its run
    try:
        airflow.delete_run("lasts", orphaned)
        begin = time.monotonic()
        run_id = airflow.trigger("reaper")
        assert airflow.wait_for_run("reaper", run_id, 120) == "success"
        assert airflow.xcom("reaper", run_id, "reap") == {"ours": 2, "stopped": [jobs[orphaned]]}
        assert wait_for(client, jobs[orphaned], timeout_s=30).status == "STOPPED"
        print(f"\nthe reaper stopped an orphan {time.monotonic() - begin:.1f} s after its run was triggered")
        assert f"Asked Ray to stop job {jobs[orphaned]}" in airflow.task_log("reaper", run_id, "reap")
        for submission_id in (jobs[healthy], "foreign", "of-another-airflow"):
            assert client.job(submission_id).status == "RUNNING"  # type: ignore[union-attr]
    finally:
        airflow.start_component("triggerer")
        for submission_id in (jobs[healthy], "foreign", "of-another-airflow"):
            client.stop(submission_id)


def test_a_killed_triggerer_does_not_touch_the_job(airflow: LocalAirflow, client: RayJobsClient) -> None:
    run_id = airflow.trigger("survives")
    submission_id = submitted_job(airflow, "survives", run_id)
    wait_for(client, submission_id, "RUNNING")
    airflow.kill_component("triggerer")
    time.sleep(2)
    airflow.start_component("triggerer")
    assert airflow.wait_for_run("survives", run_id, 180) == "success"
    assert tries(airflow, "survives", run_id) == 1
    info = client.job(submission_id)
    assert info is not None
    assert info.status == "SUCCEEDED"
    assert client.job(submission_id[:-1] + "2") is None
    assert "done" in airflow.task_log("survives", run_id, "job")


def test_no_secret_is_left_behind(airflow: LocalAirflow, local_ray: LocalRay) -> None:
    """Ray's token opened the cluster, Airflow's keys and password the API; database, XComs, logs and jobs hold none."""
    for dag_id, end in (("passes", "success"), ("rejects", "failed")):
        run_id = airflow.trigger(dag_id)
        assert airflow.wait_for_run(dag_id, run_id, 150) == end
    home = airflow.family.root
    secrets = {"Ray's token": local_ray.token, **json.loads((home / "secrets.json").read_text())}
    assert len(secrets) == 5
    request = urllib.request.Request(
        f"{local_ray.url}/api/jobs/", headers={"Authorization": f"Bearer {local_ray.token}"}
    )
    with urllib.request.urlopen(request) as answer:
        places = {"Ray's jobs": answer.read()}
    assert b"passes" in places["Ray's jobs"]
    own = {home / "secrets.json", home / "passwords.json", local_ray.family.root / "token"}
    for folder in (home, local_ray.family.root, local_ray.session_logs):
        files = [path for path in folder.rglob("*") if path.is_file() and path not in own]
        for path in files:
            with suppress(FileNotFoundError):  # SQLite's own go when the last connection closes
                places[str(path)] = path.read_bytes()
    assert any(place.endswith("airflow.db") for place in places) and len(places) > 20
    found = [f"{place}: {name}" for place, data in places.items() for name, s in secrets.items() if s.encode() in data]
    assert found == []


def test_overhead_of_short_jobs(airflow: LocalAirflow, client: RayJobsClient) -> None:
    begin = time.monotonic()
    run_id = airflow.trigger("short")
    assert airflow.wait_for_run("short", run_id, 180) == "success"
    # 12 s on two free cores; to be read, for a busy machine says little.
    print(f"\na chain of three empty Ray jobs: {(time.monotonic() - begin) / 3:.1f} s per task")


@pytest.mark.parametrize("said", [
    "sqlalchemy.orm.exc.StaleDataError: UPDATE statement on table 'dag_run' expected to update 1 row(s)",
    "sqlalchemy.orm.exc.ObjectDeletedError: Instance '<DagRun at 0x7f6e5bd1b490>' has been deleted",
])  # fmt: skip
def test_a_scheduler_that_ends_over_a_deleted_run_is_started_again(airflow: LocalAirflow, said: str) -> None:
    ended = airflow.family.pid("scheduler")
    with airflow.family.log_path("scheduler").open("a") as log:
        print(said, file=log)
    os.kill(ended, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while airflow.family.exit_code("scheduler") is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    airflow.check()
    assert airflow.family.pid("scheduler") != ended
    assert airflow.wait_for_run("passes", airflow.trigger("passes"), 120) == "success"

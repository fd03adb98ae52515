"""The operator and its trigger against a real Ray cluster, without an Airflow around them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_ray_jobs import RayJobTrigger
from airflow_ray_jobs.airflow_compat import AirflowException, AirflowFailException
from airflow_ray_jobs.client import JobRequest, RayJobsClient
from airflow_ray_jobs.owner import Owner
from tests.airflow_ray_jobs.conftest import TaskInstance, first_event, wait_for


def submit(client: RayJobsClient, submission_id: str, entrypoint: str) -> None:
    client.submit(JobRequest(submission_id, entrypoint, {}, {}))


def test_result_and_attempt(task: TaskInstance, client: RayJobsClient) -> None:
    echo = """echo 'RAY_JOB_RESULT {"uri": "s3://b/{attempt}", "variable": "'$RAY_JOB_ATTEMPT'"}'"""
    assert task.run(task.operator(echo, metadata={"stage": "embed"})) == {"uri": "s3://b/1", "variable": "1"}
    info = client.job("result_and_attempt-1")
    assert info is not None
    assert {"stage": "embed", "airflow_try_number": "1"}.items() <= info.metadata.items()
    assert Owner.read(info.metadata) == Owner("this-airflow", "d", "r", "t", -1)


def test_failure_then_retry(task: TaskInstance) -> None:
    flaky = task.operator("""echo attempt {attempt} begins; [ {attempt} -gt 1 ] || { echo "ValueError: 7"; exit 3; }""")
    with pytest.raises(AirflowException, match="ValueError: 7") as failed:
        task.run(flaky)
    assert not isinstance(failed.value, AirflowFailException)
    assert task.run(flaky) == {"submission_id": "failure_then_retry-2", "status": "SUCCEEDED"}


def test_a_retry_that_gets_the_event_of_the_failed_try(task: TaskInstance) -> None:
    """What Airflow 3.0 and early 3.1 do (apache/airflow#56704)."""
    flaky = task.operator("[ {attempt} -gt 1 ]")
    event = asyncio.run(first_event(task.begin(flaky)))
    with pytest.raises(AirflowException):
        flaky.resume(task.context(), event)
    task.try_number += 1
    again = task.until_deferred(lambda: flaky.resume(task.context(), event))
    assert task.resume(flaky, again)["submission_id"].endswith("-2")


def test_bad_input_is_not_retried(task: TaskInstance) -> None:
    line = 'RAY_JOB_FAILURE {"retryable": false, "message": "no images under /nowhere"}'
    with pytest.raises(AirflowFailException, match="no images under /nowhere"):
        task.run(task.operator(f"echo '{line}'; exit 2"))


def test_failed_before_the_first_look(task: TaskInstance, client: RayJobsClient) -> None:
    task.store["ray_job_attempt"] = 1  # its worker was cut off before the task was deferred
    submit(client, "failed_before_the_first_look-1", "echo early; exit 1")
    wait_for(client, "failed_before_the_first_look-1", "FAILED")
    with pytest.raises(AirflowException, match="early"):
        task.begin(task.operator())
    assert client.job("failed_before_the_first_look-2") is None


def test_adopts_a_live_job_even_when_killed_in_between(task: TaskInstance, client: RayJobsClient) -> None:
    operator = task.operator("""sleep 6; echo 'RAY_JOB_RESULT {"n": {attempt}}'""")
    first = task.begin(operator)  # this try submits and dies
    second = task.begin(operator)
    assert (first.adopted, second.adopted) == (False, True)
    assert first.submission_id == second.submission_id
    assert task.resume(operator, second) == {"n": 1}
    assert client.job(first.submission_id[:-1] + "2") is None


def test_adopted_then_stopped(task: TaskInstance, client: RayJobsClient) -> None:
    """The triggerer is late: it stops the old job while the new try has already adopted it."""
    operator = task.operator("[ {attempt} -gt 1 ] || sleep 100")
    first = task.begin(operator)
    wait_for(client, first.submission_id, "RUNNING")
    adopted = task.begin(operator)
    asyncio.run(first.on_kill())
    again = task.resume(operator, adopted)
    assert isinstance(again, RayJobTrigger)
    assert (again.attempt, again.adopted) == (2, False)
    assert task.resume(operator, again) == {"submission_id": "adopted_then_stopped-2", "status": "SUCCEEDED"}


def test_clearing_stops_the_live_job(task: TaskInstance, client: RayJobsClient) -> None:
    operator = task.operator("[ {attempt} -gt 1 ] || sleep 100")
    first = task.begin(operator)
    wait_for(client, first.submission_id, "RUNNING")
    task.max_tries = task.try_number  # what Airflow does when a person clears it
    assert task.run(operator) == {"submission_id": "clearing_stops_the_live_job-2", "status": "SUCCEEDED"}
    assert client.job(first.submission_id).status == "STOPPED"  # type: ignore[union-attr]


def test_takes_a_result_that_is_there_but_repeats_cleared_work(task: TaskInstance) -> None:
    operator = task.operator("""echo 'RAY_JOB_RESULT {"n": {attempt}}'""")
    trigger = task.begin(operator)
    asyncio.run(first_event(trigger))  # the try dies before it hears of the end
    assert task.begin(operator) == {"n": 1}
    assert task.begin(operator) == {"n": 1}  # that worker died before it could say so
    task.max_tries = task.try_number  # what Airflow does when a person clears it
    assert task.run(operator) == {"n": 2}


def test_clearing_counts_for_a_job_that_has_ended(task: TaskInstance) -> None:
    operator = task.operator("""echo 'RAY_JOB_RESULT {"n": {attempt}}'""")
    asyncio.run(first_event(task.begin(operator)))  # it ends, and nobody takes its result
    task.max_tries = task.try_number
    assert task.run(operator) == {"n": 2}


def test_clearing_counts_for_a_job_that_ends_before_its_stop(
    task: TaskInstance, client: RayJobsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = task.operator("""sleep 4; echo 'RAY_JOB_RESULT {"n": {attempt}}'""")
    first = task.begin(operator)
    task.max_tries = task.try_number
    monkeypatch.setattr(RayJobsClient, "stop", lambda *_: None)  # it comes too late
    waiting = task.begin(operator)
    assert waiting.submission_id == first.submission_id
    assert wait_for(client, first.submission_id).status == "SUCCEEDED"
    assert task.resume(operator, task.resume(operator, waiting)) == {"n": 2}


def test_clearing_helps_after_an_unusable_result(task: TaskInstance) -> None:
    operator = task.operator("""[ {attempt} -gt 1 ] && echo 'RAY_JOB_RESULT {"n": 2}' || echo 'RAY_JOB_RESULT ['""")
    with pytest.raises(AirflowFailException, match="succeeded, but"):
        task.run(operator)
    task.max_tries = task.try_number
    assert task.run(operator) == {"n": 2}


def test_a_worker_that_ends_stops_what_it_submitted_and_nothing_else(task: TaskInstance, client: RayJobsClient) -> None:
    submits, adopts = task.operator("sleep 100"), task.operator("sleep 100")
    trigger = task.begin(submits)
    wait_for(client, trigger.submission_id, "RUNNING")
    assert task.begin(adopts).adopted
    adopts.on_kill()
    time.sleep(4)
    assert client.job(trigger.submission_id).status == "RUNNING"  # type: ignore[union-attr]
    submits.on_kill()
    assert wait_for(client, trigger.submission_id).status == "STOPPED"


@pytest.mark.parametrize("change", [{"instance": "another"}, {"run_id": "r2"}, {"map_index": 0}])
def test_the_job_of_another_task_is_not_adopted(
    task: TaskInstance, client: RayJobsClient, change: dict[str, Any]
) -> None:
    task.base = "shared-" + "-".join(change)
    other = replace(Owner("this-airflow", "d", "r", "t", -1), **change)
    client.submit(JobRequest(f"{task.base}-1", "true", {}, other.labels()))
    with pytest.raises(AirflowFailException, match="was submitted by d.t.*submission_id of its own"):
        task.begin(task.operator())


@pytest.mark.parametrize("entrypoint", ["true", "exit 1", "sleep 100"])
def test_a_run_that_takes_the_id_of_a_deleted_one_begins_anew(
    task: TaskInstance, client: RayJobsClient, entrypoint: str
) -> None:
    task.base = f"begins-anew-{entrypoint.replace(' ', '-')}"
    trigger = task.begin(task.operator(entrypoint))
    wait_for(client, trigger.submission_id, "RUNNING", "SUCCEEDED", "FAILED")
    task.store.clear()  # what Airflow does when a person deletes the run
    task.try_number = 0
    assert task.run(task.operator())["submission_id"] == f"{task.base}-2"
    assert client.job(trigger.submission_id).status != "RUNNING"  # type: ignore[union-attr]


def test_no_event_before_the_process_of_the_task_is_gone(
    task: TaskInstance, client: RayJobsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow takes a task for lost whose process ends after the event; by default it may live on for 5 s."""
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "9")
    trigger = task.begin(task.operator())
    wait_for(client, trigger.submission_id)
    begin = time.monotonic()
    asyncio.run(first_event(trigger))
    assert time.monotonic() - begin >= 10


def test_a_lost_attempt_is_not_used_again(task: TaskInstance) -> None:
    task.store["ray_job_attempt"] = 3
    task.try_number = 1
    assert task.run(task.operator())["submission_id"] == "a_lost_attempt_is_not_used_again-4"


def test_job_timeout_stops_the_job(task: TaskInstance, client: RayJobsClient) -> None:
    operator = task.operator("sleep 100", job_timeout=timedelta(seconds=6))
    with pytest.raises(AirflowException, match="job_timeout of 6 s. It was stopped"):
        task.run(operator)
    assert client.job("job_timeout_stops_the_job-1").status == "STOPPED"  # type: ignore[union-attr]


def test_queue_timeout_names_what_is_missing_and_frees_the_queue(task: TaskInstance, client: RayJobsClient) -> None:
    for number in (1, 2):  # both CPUs of the cluster are taken
        client.submit(JobRequest(f"blocker-{number}", "sleep 100", {}, {}, num_cpus=1))
    for number in (1, 2):
        wait_for(client, f"blocker-{number}", "RUNNING")
    operator = task.operator("sleep 10; echo too late", num_cpus=1, queue_timeout=timedelta(seconds=3))
    missing = "waiting 3 s for 1 CPU, cluster has 2, in use .*Ray stops it as soon as it starts"
    with pytest.raises(AirflowException, match=missing):
        task.run(operator)
    for number in (1, 2):
        client.stop(f"blocker-{number}")
    submission_id = task.triggers[0].submission_id
    assert wait_for(client, submission_id).status in ("STOPPED", "FAILED")
    assert "too late" not in client.log(submission_id).split("\n")


def test_queue_timeout_names_what_the_cluster_has_not(task: TaskInstance) -> None:
    operator = task.operator(num_gpus=1, queue_timeout=timedelta(seconds=3))
    with pytest.raises(AirflowException, match="waiting 3 s for 1 GPU, cluster has 0"):
        task.run(operator)


def test_a_connection_that_leaves_ray_open_is_refused(task: TaskInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", '{"conn_type": "ray", "host": "ray.example"}')
    with pytest.raises(AirflowFailException, match="no token"):
        task.begin(task.operator())


def test_the_log_arrives_while_the_job_runs_and_each_line_once(
    task: TaskInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[float, str]] = []

    def info(text: str, *arguments: Any) -> None:
        shown.append((time.monotonic(), text % arguments))

    monkeypatch.setattr("airflow_ray_jobs.trigger.LOG_TIME_SHARE", 1)  # else one slow look puts off the next
    # Airflow's own formats differ from version to version.
    monkeypatch.setattr(RayJobTrigger, "log", SimpleNamespace(info=info, warning=info))
    lines = "for i in 1 2 3 4 5 6; do echo line $i; sleep 1; done"
    trigger = task.begin(task.operator(lines, max_poll=timedelta(seconds=1)))
    asyncio.run(first_event(trigger))
    assert [text for _, text in shown if text.startswith("line ")] == [f"line {i}" for i in range(1, 7)]
    first_s = next(moment for moment, text in shown if text == "line 1")
    ended_s = next(moment for moment, text in shown if "is SUCCEEDED" in text)
    assert first_s < ended_s, "what is left comes after the end"


def test_on_kill_stops_the_job_and_a_restart_does_not(task: TaskInstance, client: RayJobsClient) -> None:
    trigger = task.begin(task.operator("sleep 100"))
    wait_for(client, trigger.submission_id, "RUNNING")

    async def restart() -> None:
        following = asyncio.create_task(first_event(trigger))
        await asyncio.sleep(2)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        await trigger.cleanup()

    asyncio.run(restart())
    assert client.job(trigger.submission_id).status == "RUNNING"  # type: ignore[union-attr]

    async def kill() -> None:
        killing = asyncio.create_task(trigger.on_kill())
        await asyncio.sleep(0.1)
        killing.cancel()  # as Airflow's triggerer does
        await asyncio.sleep(3)

    asyncio.run(kill())
    assert wait_for(client, trigger.submission_id, timeout_s=25).status == "STOPPED"


def test_patience_ends_and_the_loop_is_never_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", '{"conn_type": "ray", "host": "127.0.0.1", "port": 1}')
    trigger = RayJobTrigger("ray_default", "nobody-1", 1, False, 1.0, time.time(), None, None, patience_s=3)

    async def follow() -> tuple[dict[str, Any], float]:
        longest, following = 0.0, asyncio.create_task(first_event(trigger))
        while not following.done():
            begin = time.monotonic()
            await asyncio.sleep(0.05)
            longest = max(longest, time.monotonic() - begin)
        return following.result(), longest

    event, longest_s = asyncio.run(follow())
    assert (event["step"], event["retryable"]) == ("fail", True)
    assert "no answer for 3 s" in event["message"]
    assert longest_s < 1

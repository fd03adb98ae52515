"""The reaper on a real Ray, with an Airflow that says what the test wants; `test_real_airflow.py` has the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from airflow.utils.state import TaskInstanceState

from airflow_ray_jobs.client import JobRequest, RayJobsClient
from airflow_ray_jobs.owner import MARK, Owner
from airflow_ray_jobs.reaper import reap
from airflow_ray_jobs.status import ABANDONED, CLEARED, GONE
from tests.airflow_ray_jobs.conftest import wait_for

OURS = "airflow-of-the-reaper-s-tests"  # not the one of other tests, whose jobs may still run
KEPT = {"scheduled", "queued", "running", "restarting", "up_for_retry", "up_for_reschedule", "deferred",
        "awaiting_input"}  # fmt: skip


def test_every_state_of_airflow_is_decided() -> None:
    words = {state.value for state in TaskInstanceState}
    assert words <= ABANDONED | KEPT
    assert not ABANDONED & KEPT
    assert ABANDONED - words == {GONE, CLEARED}


def test_labels_are_read_back() -> None:
    owner = Owner(OURS, "d", "manual__2026-01-01T00:00:00+00:00", "t", 3)
    assert Owner.read({"stage": "embed", **owner.labels()}) == owner
    assert str(owner) == "d.t[3] of run manual__2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize("change", [{MARK: "2"}, {MARK: ""}, {"airflow_map_index": "x"}])
def test_other_labels_are_nobody_of_ours(change: dict[str, str]) -> None:
    assert Owner.read(Owner(OURS, "d", "r", "t", -1).labels() | change) is None
    assert Owner.read({}) is None
    assert Owner.read({MARK: "1"}) is None


@pytest.fixture
def jobs(client: RayJobsClient, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Live jobs: their ids by task id; a foreign one, and one of another Airflow, among them."""
    ids = {}
    labels = {
        "mine": Owner(OURS, "d", "r", "mine", -1).labels(),
        "other": Owner(OURS, "d", "r", "other", 0).labels(),
        "elsewhere": Owner("another-airflow", "d", "r", "mine", -1).labels(),
        "unmarked": {key: value for key, value in Owner(OURS, "d", "r", "mine", -1).labels().items() if key != MARK},
        "foreign": {},
    }
    for name, metadata in labels.items():
        ids[name] = f"{request.node.name}-{name}"
        client.submit(JobRequest(ids[name], "sleep 200", {}, metadata))
    for submission_id in ids.values():
        wait_for(client, submission_id, "RUNNING")
    yield ids
    for submission_id in ids.values():
        client.stop(submission_id)
    for submission_id in ids.values():
        wait_for(client, submission_id)


def running(client: RayJobsClient, jobs: dict[str, str]) -> set[str]:
    return {name for name, submission_id in jobs.items() if client.job(submission_id).status == "RUNNING"}  # type: ignore[union-attr]


def test_only_what_is_abandoned_and_ours_is_stopped(client: RayJobsClient, jobs: dict[str, str]) -> None:
    asked = []

    def state_of(owner: Owner) -> str:
        asked.append(owner)
        return GONE if owner.task_id == "mine" else "deferred"

    reaped = reap(client, state_of, OURS, grace_s=0, confirm_after_s=0)
    assert reaped.stopped == [jobs["mine"]]
    assert reaped.ours == 2
    assert {owner.instance for owner in asked} == {OURS}
    assert wait_for(client, jobs["mine"]).status == "STOPPED"
    assert running(client, jobs) == set(jobs) - {"mine"}


def test_a_state_that_was_there_for_a_moment_stops_nothing(client: RayJobsClient, jobs: dict[str, str]) -> None:
    answers = iter([CLEARED, CLEARED, "scheduled", "running"])
    assert reap(client, lambda owner: next(answers), OURS, grace_s=0, confirm_after_s=0.1).stopped == []
    assert running(client, jobs) == set(jobs)


def test_an_attempt_that_was_overtaken_is_stopped(client: RayJobsClient) -> None:
    """A try that was cut short while it submitted left a job that its successor does not know."""
    owner = Owner(OURS, "d", "r", "mine", -1)
    ids = ["overtaken-9", "overtaken-10", "overtaken-of-another-name-1"]
    for submission_id in ids:
        client.submit(JobRequest(submission_id, "sleep 200", {}, owner.labels()))
    for submission_id in ids:
        wait_for(client, submission_id, "RUNNING")
    try:
        reaped = reap(client, lambda owner: "deferred", OURS, grace_s=0, confirm_after_s=0.1)
        assert (reaped.ours, reaped.stopped) == (3, ["overtaken-9"])
        assert wait_for(client, "overtaken-9").status == "STOPPED"
    finally:
        for submission_id in ids:
            client.stop(submission_id)
        for submission_id in ids:
            wait_for(client, submission_id)


def test_a_young_job_is_left_alone(client: RayJobsClient, jobs: dict[str, str]) -> None:
    reaped = reap(client, lambda owner: GONE, OURS, grace_s=600, confirm_after_s=0)
    assert (reaped.ours, reaped.stopped) == (0, [])
    assert running(client, jobs) == set(jobs)


def test_an_airflow_that_cannot_be_asked_stops_nothing(client: RayJobsClient, jobs: dict[str, str]) -> None:
    def state_of(owner: Owner) -> str:
        if owner.task_id == "other":
            raise ConnectionError("no Airflow")
        return GONE

    with pytest.raises(ConnectionError):
        reap(client, state_of, OURS, grace_s=0, confirm_after_s=0)
    assert running(client, jobs) == set(jobs)

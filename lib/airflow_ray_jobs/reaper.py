"""Stops Ray jobs that no Airflow task waits for any more. Knows Airflow only as a function that it may ask.

Tasks stop their own jobs when a person marks or clears them. This is for what they cannot see: a run that was deleted
while no triggerer lived, an Airflow too old to tell its triggers. In doubt a job is left alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from airflow_ray_jobs.client import JobInfo, RayJobsClient
from airflow_ray_jobs.errors import RayJobsError
from airflow_ray_jobs.owner import Owner
from airflow_ray_jobs.protocol import split_id
from airflow_ray_jobs.status import ABANDONED, LIVE

log = logging.getLogger(__name__)


@dataclass
class Reaped:
    """What a round found: how many live jobs were this Airflow's, which Ray was asked to stop, and where it refused."""

    ours: int
    stopped: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def reap(
    client: RayJobsClient,
    state_of: Callable[[Owner], str],
    instance: str,
    grace_s: float,
    confirm_after_s: float,
) -> Reaped:
    """Stop the live jobs of this Airflow whose task instance is gone, has ended or was cleared, or which it overtook.

    Every job is looked at twice, ``confirm_after_s`` apart, and stopped only if both looks agree: a scheduler that
    restarts leaves tasks without a state for a moment. All questions come before the first stop, so nothing is
    stopped when one of them fails.

    Args:
        state_of: state of a task instance: Airflow's word, ``GONE`` or ``CLEARED`` (see ``status.py``); raises when
            Airflow cannot be asked.
        instance: id of this Airflow; jobs of another one are not touched.
        grace_s: age below which a job is left alone.
    """
    ours = _ours(client.jobs(), instance, grace_s)
    orphans = _orphans(ours, state_of)
    if not orphans:
        return Reaped(len(ours))
    time.sleep(confirm_after_s)
    again = _ours(client.jobs(), instance, grace_s)
    still = _orphans(again, state_of)
    reaped = Reaped(len(ours))
    for submission_id in [name for name in still if name in orphans]:
        try:
            client.stop(submission_id)
        except RayJobsError as error:
            reaped.errors.append(f"{submission_id}: {error}")
        else:
            log.warning("Asked Ray to stop job %s: %s", submission_id, still[submission_id])
            reaped.stopped.append(submission_id)
    return reaped


def _ours(jobs: Iterable[JobInfo], instance: str, grace_s: float) -> dict[str, Owner]:
    """The live jobs that tasks of this Airflow submitted, older than ``grace_s``."""
    newest_s = time.time() - grace_s
    found = {}
    for job in jobs:
        owner = Owner.read(job.metadata)
        old_enough = job.start_time_s is not None and job.start_time_s <= newest_s
        if job.status in LIVE and old_enough and owner is not None and owner.instance == instance:
            found[job.submission_id] = owner
    return found


def _orphans(jobs: dict[str, Owner], state_of: Callable[[Owner], str]) -> dict[str, str]:
    """The jobs whose task no longer wants them, each with the reason in words."""
    states = {submission_id: state_of(owner) for submission_id, owner in jobs.items()}
    orphans = {
        submission_id: f"{jobs[submission_id]} is {state}"
        for submission_id, state in states.items()
        if state in ABANDONED
    }
    # A try that was held up, or cut short, while it submitted may have started one that its successor does not know.
    latest: dict[tuple[Owner, str], int] = {}
    for submission_id, owner in jobs.items():
        base, attempt = split_id(submission_id)
        latest[owner, base] = max(attempt, latest.get((owner, base), 0))
    for submission_id, owner in jobs.items():
        base, attempt = split_id(submission_id)
        if attempt < latest[owner, base]:
            orphans.setdefault(submission_id, f"{owner} is at attempt {latest[owner, base]}")
    return orphans

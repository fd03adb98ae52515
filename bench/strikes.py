"""Ten ways of striking a run of the DAG, and a watch over Ray's jobs meanwhile. For ``bench.trials``."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from airflow_ray_jobs.client import RayJobsClient
from airflow_ray_jobs.errors import RayJobsError
from airflow_ray_jobs.protocol import split_id
from airflow_ray_jobs.status import LIVE
from infra.local.airflow_api import FINISHED
from infra.local.processes import LocalServiceError, commands
from infra.local.stack import LocalStack

PEOPLE = ("mark failed", "clear", "task timeout", "DAG-run deletion")
STRIKES = (*PEOPLE, "triggerer", "scheduler", "Airflow worker", "Ray driver", "raylet", "Ray head")
_MOMENT_COMES_WITHIN_S = 400


@dataclass(frozen=True)
class Moment:
    """A run of a DAG, and when it is struck: so many seconds after the job of ``stage`` is awaited."""

    dag: str
    run_id: str
    stage: str
    after_s: float
    share: float  # the same draw, for choosing among several


@dataclass(frozen=True)
class Struck:
    """What was struck, when, and which job has to stop for it."""

    what: str
    at: float
    stopped: str | None = None


class TooLate(LocalServiceError):
    """The run was over before it was struck."""


class Jobs:
    """Looks at Ray's jobs twice a second, and remembers: a head that is killed forgets them."""

    def __init__(self, client: RayJobsClient) -> None:
        self.client = client
        self.seen: dict[str, list[tuple[float, str]]] = {}  # by submission id: every change, with when it was seen
        self.together: set[tuple[str, ...]] = set()  # attempts of one job that lived at the same time
        self._now: dict[str, str] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before: frozenset[str] = frozenset()

    def __enter__(self) -> Jobs:
        self._before = frozenset(job.submission_id for job in self.client.jobs())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            # While the head is away nobody answers, and what it forgot is not there any more.
            with suppress(RayJobsError):
                self._look()

    def _look(self) -> None:
        now = {job.submission_id: job.status for job in self.client.jobs() if job.submission_id not in self._before}
        at = time.monotonic()
        living = defaultdict(list)
        for submission_id, status in now.items():
            changes = self.seen.setdefault(submission_id, [])
            if not changes or changes[-1][1] != status:
                changes.append((at, status))
            if status in LIVE:
                living[base(submission_id)].append(submission_id)
        self.together |= {tuple(sorted(ids)) for ids in living.values() if len(ids) > 1}
        self._now = now

    def living(self) -> list[str]:
        """Ids of the jobs that live now."""
        return sorted(job for job, status in self._now.items() if status in LIVE)

    def wait_until_none_lives(self, timeout_s: float) -> None:
        """Return when no job lives, or when the time is up."""
        deadline = time.monotonic() + timeout_s
        while self.living() and time.monotonic() < deadline:
            time.sleep(0.2)

    def latest(self, task: str, statuses: frozenset[str] | None = None) -> str | None:
        """Id of the task's latest job, if it is in one of the statuses; None where there is none."""
        found = [job for job in self.seen if f"-{task}-" in job]
        if not found or (statuses is not None and self.seen[found[-1]][-1][1] not in statuses):
            return None
        return found[-1]

    def stopped(self) -> list[str]:
        """Ids of jobs that somebody stopped."""
        return sorted(job for job, changes in self.seen.items() if changes[-1][1] == "STOPPED")

    def stopped_after(self, submission_id: str, since: float) -> float | None:
        """Seconds from ``since`` until the job was seen to be no longer alive; None if it has not been."""
        ends = [at for at, status in self.seen.get(submission_id, []) if status not in LIVE]
        return round(max(0.0, ends[0] - since), 1) if ends else None

    def attempts(self) -> dict[str, int]:
        """How many attempts each stage had, of those that had more than one."""
        count: dict[str, int] = defaultdict(int)
        for submission_id in self.seen:
            count[base(submission_id).split("-")[-2]] += 1  # …-<task>-<hash>
        return {stage: n for stage, n in count.items() if n > 1}

    def seconds(self, part: str) -> float:
        """How long the one job whose id holds ``part`` lived."""
        (changes,) = [changes for job, changes in self.seen.items() if part in job]
        return round(changes[-1][0] - changes[0][0], 1)


def base(submission_id: str) -> str:
    """The id without its attempt."""
    return split_id(submission_id)[0]


def strike(kind: str, moment: Moment, local: LocalStack, jobs: Jobs, away_s: float) -> Struck:
    """Wait for the moment, strike, and start again what has to be.

    Raises:
        TooLate: the run was over before there was something to strike.
        LocalServiceError: the moment does not come.
    """
    airflow = local.airflow

    def until(ready: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + _MOMENT_COMES_WITHIN_S
        while time.monotonic() < deadline:
            if found := ready():
                return found
            if airflow.run_state(moment.dag, moment.run_id) in FINISHED:
                raise TooLate(f"the run was over before there was {what}")
            time.sleep(0.1)
        raise LocalServiceError(f"waited {_MOMENT_COMES_WITHIN_S:.0f} s for {what}")

    def active() -> list[str]:
        """The task that runs or is waiting for its job; tasks come one after the other."""
        states = airflow.task_states(moment.dag, moment.run_id)
        return [task for task, state in states.items() if state in ("running", "deferred")]

    if kind == "task timeout":
        # The deadline itself strikes: of the first attempt that was submitted.
        job = until(lambda: jobs.latest(moment.stage), f"a job of {moment.stage}")
        return Struck(moment.stage, jobs.seen[job][0][0], job)
    until(lambda: moment.stage in active(), f"the stage {moment.stage}")
    time.sleep(moment.after_s)
    if kind in PEOPLE:
        living = lambda: [(task, job) for task in active() if (job := jobs.latest(task, LIVE))]  # noqa: E731
        ((task, job),) = until(living, "a job that lives")
    else:
        (task,), job = until(active, "a task that runs"), None
    at = time.monotonic()
    match kind:
        case "mark failed":
            airflow.set_task_state(moment.dag, moment.run_id, task, "failed")
        case "clear":
            airflow.clear_task(moment.dag, moment.run_id, task)
        case "DAG-run deletion":
            airflow.delete_run(moment.dag, moment.run_id)
        case "triggerer" | "scheduler":
            airflow.kill_component(kind)
            time.sleep(away_s)
            airflow.start_component(kind)
        case "Airflow worker" | "Ray driver":
            for process in until(_drivers if kind == "Ray driver" else airflow.task_processes, "a process to kill"):
                with suppress(psutil.Error):
                    process.kill()
        case "raylet":
            number = 2 + int(2 * moment.share)
            local.ray.kill_node(number)
            time.sleep(away_s)
            local.ray.bring_up_worker(number)
        case "Ray head":
            local.ray.restart(away_s)
    return Struck(task, at, job)


def _drivers() -> list[psutil.Process]:
    found = []
    for process in commands("-m workers."):
        with suppress(psutil.Error):
            if process.name().startswith("python"):
                found.append(process)
    return found

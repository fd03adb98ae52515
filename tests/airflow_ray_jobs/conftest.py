"""One private Ray cluster for all tests of the bridge, and what runs a task without an Airflow around it."""

from __future__ import annotations

import os
import sys
import tempfile

# Airflow reads its settings when it is first imported; these tests must not touch a person's own Airflow.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_ray_jobs import RayJobOperator, RayJobTrigger
from airflow_ray_jobs.airflow_compat import TaskDeferred
from airflow_ray_jobs.client import JobInfo, RayAddress, RayJobsClient
from airflow_ray_jobs.status import TERMINAL
from infra.local.ray_cluster import LocalRay

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    """Two real nodes with one CPU each, protected by a token although the home folder holds another one."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("the token of somebody else's cluster")
    begin = time.monotonic()
    # Where Airflow's side has no ray, its own environment is named.
    python = os.environ.get("RAY_PYTHON", sys.executable)
    root = tmp_path_factory.mktemp("ray")
    with LocalRay(root, nodes=2, cpus_per_node=1, env={"HOME": str(home)}, python=python) as ray:
        print(f"\nRay with 2 nodes up in {time.monotonic() - begin:.1f} s")
        yield ray


@pytest.fixture(scope="session")
def address(local_ray: LocalRay) -> RayAddress:
    return RayAddress(local_ray.url, local_ray.token)


@pytest.fixture
def client(address: RayAddress) -> Iterator[RayJobsClient]:
    with RayJobsClient(address) as client:
        yield client


@pytest.fixture
def connection(local_ray: LocalRay, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in local_ray.airflow_env.items():
        monkeypatch.setenv(name, value)
    # Without an Airflow around the task there is no database that would keep it.
    monkeypatch.setenv("AIRFLOW_VAR_AIRFLOW_RAY_JOBS_INSTANCE", "this-airflow")


class TaskInstance:
    """A task instance as the operator sees it: its tries share one state store, as in Airflow."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.try_number = 0
        self.max_tries = 0
        self.store: dict[str, Any] = {}
        self.triggers: list[RayJobTrigger] = []

    def operator(self, entrypoint: str = "true", **settings: Any) -> RayJobOperator:
        return RayJobOperator(task_id="t", entrypoint=entrypoint, submission_id=self.base, **settings)

    def begin(self, operator: RayJobOperator) -> Any:
        """Starts the next try: the result, or the trigger that the try waits for."""
        self.try_number += 1
        return self.until_deferred(lambda: operator.execute(self.context()))

    def resume(self, operator: RayJobOperator, trigger: RayJobTrigger) -> Any:
        """Runs the trigger to its event and continues: the result, or the next trigger."""
        event = asyncio.run(first_event(trigger))
        return self.until_deferred(lambda: operator.resume(self.context(), event))

    def run(self, operator: RayJobOperator) -> Any:
        """One whole try."""
        step = self.begin(operator)
        while isinstance(step, RayJobTrigger):
            step = self.resume(operator, step)
        return step

    def context(self) -> Any:
        ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=self.try_number,
                             max_tries=self.max_tries)  # fmt: skip
        store = SimpleNamespace(get=self.store.get, set=self.store.__setitem__)
        return {"ti": ti, "task_state_store": store}

    def until_deferred(self, part: Callable[[], Any]) -> Any:
        try:
            return part()
        except TaskDeferred as deferred:
            _, arguments = deferred.trigger.serialize()
            self.triggers.append(RayJobTrigger(**arguments))
            return self.triggers[-1]


@pytest.fixture
def task(request: pytest.FixtureRequest, connection: None) -> TaskInstance:
    return TaskInstance(request.node.name.removeprefix("test_"))


async def first_event(trigger: RayJobTrigger) -> dict[str, Any]:
    async for event in trigger.run():
        return dict(event.payload)
    raise AssertionError("the trigger ended without an event")


def wait_for(client: RayJobsClient, submission_id: str, *statuses: str, timeout_s: float = 60) -> JobInfo:
    """The job once it has one of the statuses (default: any final one)."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        info = client.job(submission_id)
        if info is not None and info.status in (statuses or TERMINAL):
            return info
        time.sleep(0.3)
    raise AssertionError(f"{submission_id} is {info} after {timeout_s:.0f} s")

"""`@task.ray_job` on a real Ray; `test_real_airflow.py` has it in a real Airflow."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_ray_jobs.client import RayJobsClient
from airflow_ray_jobs.decorator import RayJobDecoratedOperator
from tests.airflow_ray_jobs.conftest import TaskInstance, wait_for


@pytest.fixture(name="instance")
def task_instance(request: pytest.FixtureRequest, connection: None) -> TaskInstance:
    return TaskInstance(request.node.name.removeprefix("test_"))


def decorated(instance: TaskInstance, function: Any, *args: Any, **settings: Any) -> RayJobDecoratedOperator:
    with DAG("d", schedule=None):
        return task.ray_job(submission_id=instance.base, task_id="t", **settings)(function)(*args).operator


def test_the_function_gives_the_command(instance: TaskInstance, client: RayJobsClient) -> None:
    def job(number: int, ti: Any) -> str:
        return f"""echo 'RAY_JOB_RESULT {{"n": {number}, "task": "{ti.task_id}", "attempt": {{attempt}}}}'"""

    operator = decorated(instance, job, 7, env_vars={"COLOUR": "blue"})
    assert operator.custom_operator_name == "@task.ray_job"
    assert instance.run(operator) == {"n": 7, "task": "t", "attempt": 1}
    assert operator.entrypoint.startswith("echo 'RAY_JOB_RESULT")


def test_it_is_called_for_each_attempt_and_not_for_an_adopted_job(
    instance: TaskInstance, client: RayJobsClient
) -> None:
    calls = []

    def job() -> str:
        calls.append(len(calls))
        return "sleep 5; exit {attempt}"

    operator = decorated(instance, job)
    trigger = instance.begin(operator)
    wait_for(client, trigger.submission_id, "RUNNING")
    assert instance.begin(operator).adopted
    assert calls == [0]
    wait_for(client, trigger.submission_id, "FAILED")
    assert instance.begin(operator).attempt == 2
    assert calls == [0, 1]


@pytest.mark.parametrize("returned", [None, "", " ", 7])
def test_anything_but_a_command_is_an_error(instance: TaskInstance, returned: Any) -> None:
    instance.base = "no-command"
    with pytest.raises(TypeError, match="has to return a command"):
        instance.begin(decorated(instance, lambda: returned))

"""What the tests of the whole line share: when they run, and how they wait for a DAG run."""

from __future__ import annotations

import os

import pytest

from infra.local.airflow import LocalAirflow

WHEN_ASKED = pytest.mark.skipif(not os.environ.get("DAMAGE_ATLAS_LINE"), reason="takes minutes: run `make test-line`")
LONG = [
    WHEN_ASKED,
    pytest.mark.airflow,
    pytest.mark.ray,
    pytest.mark.s3,
    pytest.mark.timeout(2400),
]


def finish(airflow: LocalAirflow, dag: str, run_id: str, timeout_s: float) -> None:
    """Wait until the run has succeeded; fail with the logs of the tasks that did not."""
    state = airflow.wait_for_run(dag, run_id, timeout_s=timeout_s)
    if state != "success":
        states = airflow.task_states(dag, run_id)
        failed = [task for task, s in states.items() if s == "failed"]
        pytest.fail(f"{dag}: {states}\n" + "\n".join(airflow.task_log(dag, run_id, t)[-4000:] for t in failed))

"""The decision table, row by row."""

from __future__ import annotations

import pytest

from airflow_ray_jobs.status import LIVE, TERMINAL, Stand, Step, next_step

SUBMIT, WAIT, TAKE, FAIL = Step.SUBMIT, Step.WAIT, Step.TAKE, Step.FAIL

TABLE = {
    # status:     FIRST_TRY LATER_TRY CLEARED OWN   ADOPTED
    None:        (SUBMIT,   SUBMIT,   SUBMIT, FAIL, SUBMIT),
    "PENDING":   (WAIT,     WAIT,     WAIT,   WAIT, WAIT),
    "RUNNING":   (WAIT,     WAIT,     WAIT,   WAIT, WAIT),
    "SUCCEEDED": (TAKE,     TAKE,     SUBMIT, TAKE, TAKE),
    "FAILED":    (FAIL,     SUBMIT,   SUBMIT, FAIL, FAIL),
    "STOPPED":   (FAIL,     SUBMIT,   SUBMIT, FAIL, SUBMIT),
    "SUSPENDED": (WAIT,     WAIT,     WAIT,   WAIT, WAIT),  # a word that Ray might learn
}  # fmt: skip
ROWS = [
    (status, stand, step)
    for status, steps in TABLE.items()
    for stand, step in zip(Stand, steps, strict=True)
]  # fmt: skip


@pytest.mark.parametrize(("status", "stand", "step"), ROWS)
def test_row(status: str | None, stand: Stand, step: Step) -> None:
    assert next_step(status, stand) is step


def test_a_live_job_is_never_doubled_and_never_called_done() -> None:
    assert {next_step(status, stand) for status in LIVE for stand in Stand} == {WAIT}


def test_only_success_is_taken() -> None:
    taken = {status for status, stand, step in ROWS if step is TAKE}
    assert taken == {"SUCCEEDED"}


def test_statuses_are_those_of_ray() -> None:
    JobStatus = pytest.importorskip("ray.job_submission").JobStatus

    assert {status.value for status in JobStatus} == LIVE | TERMINAL
    assert {status.value for status in JobStatus if status.is_terminal()} == TERMINAL

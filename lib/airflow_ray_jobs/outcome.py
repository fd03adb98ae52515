"""How one attempt of a job ended, and what the task makes of it. Pure; no I/O. Travels as a trigger's event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from airflow_ray_jobs.client import JobInfo
from airflow_ray_jobs.errors import ProtocolError
from airflow_ray_jobs.protocol import last_lines, read_failure, read_result
from airflow_ray_jobs.status import Stand, Step, next_step


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt.

    ``step`` is TAKE, FAIL or SUBMIT (as a string, so that the record is plain JSON); ``result`` is the XCom value
    for TAKE, ``message`` the explanation for FAIL, and ``retryable`` whether another try can help.
    """

    submission_id: str
    attempt: int
    step: str
    result: dict[str, Any] | None = None
    message: str = ""
    retryable: bool = True

    def payload(self) -> dict[str, Any]:
        """Plain JSON for a trigger event."""
        return asdict(self)

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`payload`."""
        return cls(**payload)


def outcome_of(info: JobInfo | None, stand: Stand, submission_id: str, attempt: int, log: str) -> Outcome:
    """The outcome of a job that has ended (or is lost: ``info`` is None), with its whole ``log``."""
    status = info.status if info else None
    step = next_step(status, stand)
    if step is Step.TAKE:
        try:
            result = read_result(log)
        except ProtocolError as error:
            message = f"Ray job {submission_id} succeeded, but {error}"
            return Outcome(submission_id, attempt, Step.FAIL.value, message=message, retryable=False)
        default = {"submission_id": submission_id, "status": status}
        return Outcome(submission_id, attempt, step.value, result=default if result is None else result)
    if step is Step.FAIL:
        message, retryable = _explain(info, submission_id, log)
        return Outcome(submission_id, attempt, step.value, message=message, retryable=retryable)
    return Outcome(submission_id, attempt, step.value, message=f"Ray job {submission_id} is {status or 'lost'}")


def given_up(submission_id: str, attempt: int, message: str) -> Outcome:
    """The outcome of a job that this task stopped waiting for; another try may help."""
    return Outcome(submission_id, attempt, Step.FAIL.value, message=message)


def _explain(info: JobInfo | None, submission_id: str, log: str) -> tuple[str, bool]:
    """The message for a failed job, and whether another try can help."""
    if info is None:
        return (
            f"Ray job {submission_id} is lost: Ray no longer knows it (was its head restarted?). "
            "A retry submits the next attempt.",
            True,
        )
    told = read_failure(log)
    if told and info.status == "FAILED":
        return f"Ray job {submission_id} failed: {told.message}", told.retryable
    ended = "was stopped" if info.status == "STOPPED" else "failed"
    lines = last_lines(log)
    end = f"The last lines of its log:\n{lines}" if lines else "It left no log."
    return f"Ray job {submission_id} {ended}. {info.message.strip()}\n{end}", True

"""What a job may tell the task through its log. Pure; no I/O.

A job is any command. Two kinds of line on its standard output carry meaning; each stands at the beginning of a
line, with one JSON object behind it, and the last of its kind counts:

``RAY_JOB_RESULT {"status": "sealed", "uri": "s3://…"}``
    becomes the task's XCom return value when the job succeeds: status and URIs, at most 16 KiB.

``RAY_JOB_FAILURE {"retryable": false, "message": "no images under s3://…"}``
    explains a failure. With ``retryable: false`` Airflow does not try again.

The job receives its attempt as ``RAY_JOB_ATTEMPT`` in its environment and as ``{attempt}`` in its entrypoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from airflow_ray_jobs.errors import ProtocolError

RESULT_MARK = "RAY_JOB_RESULT "
FAILURE_MARK = "RAY_JOB_FAILURE "
ATTEMPT_VARIABLE = "RAY_JOB_ATTEMPT"
MAX_RESULT_BYTES = 16 * 1024
_END_CHARS = 64 * 1024
MAX_ID_LENGTH = 180  # Ray makes a file name of the id


@dataclass(frozen=True)
class Failure:
    """Why a job failed, in its own words where it left any."""

    message: str
    retryable: bool


def read_result(log: str) -> dict[str, Any] | None:
    """The object of the last ``RAY_JOB_RESULT`` line, or None; raises :class:`ProtocolError` if it is unusable."""
    text = _last_marked(log, RESULT_MARK)
    if text is None:
        return None
    if len(text.encode()) > MAX_RESULT_BYTES:
        raise ProtocolError(
            f"the job's {RESULT_MARK.strip()} line has {len(text.encode())} bytes, more than {MAX_RESULT_BYTES}. "
            "Write the data to the store and put only its URI into the line."
        )
    try:
        result = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"the job's {RESULT_MARK.strip()} line is not JSON ({error}): {text[:200]}") from None
    if not isinstance(result, dict):
        raise ProtocolError(f"the job's {RESULT_MARK.strip()} line is not a JSON object: {text[:200]}")
    return result


def read_failure(log: str) -> Failure | None:
    """The last ``RAY_JOB_FAILURE`` line, or None when there is none that can be read.

    An unreadable line is no reason to hide the failure that it was meant to explain: the log's end is shown then.
    """
    text = _last_marked(log, FAILURE_MARK)
    try:
        fields = json.loads(text or "")
        return Failure(str(fields["message"]), retryable=bool(fields.get("retryable", True)))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def last_lines(log: str, count: int = 40) -> str:
    """The last ``count`` lines that say something, for an error message: a traceback, and what came before it."""
    end = log.rstrip()
    if len(end) > _END_CHARS:  # a log may have 100 MB
        end = end[-_END_CHARS:].partition("\n")[2] or end[-_END_CHARS:]
    lines = [shown_line(line) for line in end.split("\n") if line.strip() and not line.startswith(FAILURE_MARK)]
    return "\n".join(lines[-count:])


def shown_line(line: str) -> str:
    """A line as a terminal would show it: a progress bar that redraws itself counts once."""
    return line.rstrip().rpartition("\r")[2]


def attempt_id(base: str, attempt: int) -> str:
    """Submission id of one attempt (counted from 1): ``<base>-<attempt>``.

    ``base`` becomes part of a URL and of a file name: other characters than letters, digits, ``.``, ``_`` and ``-``
    are replaced, and a digest is added then, so that two different bases stay different.
    """
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", base).strip("-.")[:MAX_ID_LENGTH]
    if clean != base:
        clean += "-" + hashlib.sha256(base.encode()).hexdigest()[:8]
    return f"{clean}-{attempt}"


def split_id(submission_id: str) -> tuple[str, int]:
    """Base and attempt of an id that :func:`attempt_id` made; any other is its own base, at attempt 0."""
    base, _, number = submission_id.rpartition("-")
    return (base, int(number)) if number.isdecimal() else (submission_id, 0)


def _last_marked(log: str, mark: str) -> str | None:
    begin = log.rfind("\n" + mark) + 1
    if not log.startswith(mark, begin):
        return None
    end = log.find("\n", begin)
    return log[begin + len(mark) : None if end < 0 else end].strip()

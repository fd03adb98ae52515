"""The decisions: what to do with a Ray job, and when nobody waits for it any more. Pure; no I/O."""

from __future__ import annotations

import enum


class Stand(enum.Enum):
    """Where the task stands when it looks at the latest attempt of its job."""

    FIRST_TRY = "first try"  # the task begins its first try
    LATER_TRY = "later try"  # the task begins again after a try that failed or was killed
    CLEARED = "cleared"  # the work is wanted again: a person cleared the task since, or the job is a deleted run's
    OWN = "own"  # it waits for a job that this try submitted
    ADOPTED = "adopted"  # it waits for a job that an earlier try had submitted


class Step(enum.Enum):
    """What to do next."""

    SUBMIT = "submit"  # submit the next attempt: one above the latest known
    WAIT = "wait"  # the job lives: wait for it
    TAKE = "take"  # take its result
    FAIL = "fail"  # fail this try; the next one decides anew


LIVE = frozenset({"PENDING", "RUNNING"})
TERMINAL = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})

GONE = "gone"  # Airflow knows no such task instance: its run was deleted
CLEARED = "cleared"  # it has no state: a person cleared it, and no new try has been scheduled

# States of a task instance that leave its job without anybody. In every other one the task runs, waits for the job
# (deferred), or its next try adopts it; a word that Airflow may yet learn is among the others.
ABANDONED = frozenset({GONE, CLEARED, "success", "failed", "skipped", "upstream_failed", "removed"})


def next_step(status: str | None, stand: Stand) -> Step:
    """The next step for a job with ``status`` (Ray's word; None when Ray knows no such job).

    A live job is never doubled, a result that is there is never computed again, and a job that failed before
    anybody looked is a failure. A job found dead by a later try is followed by the next attempt. An adopted job
    that is stopped or lost under us was stopped on behalf of the earlier try (a cleared task, a restarted head),
    so this try, which has started nothing yet, starts its own.
    """
    match status, stand:
        case (("PENDING" | "RUNNING"), _):
            return Step.WAIT
        case (("SUCCEEDED" | "FAILED" | "STOPPED" | None), Stand.CLEARED):
            return Step.SUBMIT
        case "SUCCEEDED", _:
            return Step.TAKE
        case "FAILED", Stand.LATER_TRY:
            return Step.SUBMIT
        case "FAILED", _:
            return Step.FAIL
        case (("STOPPED" | None), (Stand.LATER_TRY | Stand.ADOPTED)):
            return Step.SUBMIT
        case "STOPPED", _:
            return Step.FAIL
        case None, Stand.FIRST_TRY:
            return Step.SUBMIT
        case None, _:
            return Step.FAIL
        case _:
            # A word that this version does not know: it is not an end we know of, so a second job could run
            # beside it. The task's own time limits bound the waiting.
            return Step.WAIT

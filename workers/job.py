"""What all workers share: arguments, logging, and the two lines that tell the caller how it went.

The lines are the protocol of `airflow_ray_jobs`: RAY_JOB_RESULT {...} on success, RAY_JOB_FAILURE {...} on failure.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from damage_atlas.contracts import Artifact
from damage_atlas.errors import AtlasError
from damage_atlas.store import Run
from workers.logs import log_to_stdout
from workers.progress import export_progress


def run_job(stage: str, work: Callable[[Run], Artifact]) -> None:
    """Run ``work`` on the run named on the command line, unless the stage is complete already."""
    parser = argparse.ArgumentParser(prog=f"workers.{stage}")
    parser.add_argument("run_uri")
    parser.add_argument("--attempt", type=int, default=1)
    arguments = parser.parse_args()
    log_to_stdout()
    with told_to_caller():
        run = Run.load(arguments.run_uri, arguments.attempt)
        log_to_stdout(about(run, stage))
        export_progress(run.spec.archive)
        artifact = run.stage(stage).sealed
        if artifact is None:
            artifact = work(run)
        else:
            logging.getLogger("workers").info("%s: complete already, nothing to do", stage)
    result = {"stage": stage, "run_uri": run.uri, "seconds": artifact.seconds, "counts": artifact.counts}
    told = {
        name: artifact.facts[name] for name in ("ledger", "version", "report", "promoted") if name in artifact.facts
    }
    if "ledger" in told:
        logging.getLogger("workers").info("%s: %s", stage, _in_words(told["ledger"]))
    say_result(result | told)


@contextmanager
def told_to_caller() -> Iterator[None]:
    """An error that a person is meant to read ends the job with its message, and with whether to try again."""
    try:
        yield
    except AtlasError as error:
        _say("RAY_JOB_FAILURE", {"retryable": error.retryable, "message": error.message})
        sys.exit(error.exit_code)


def say_result(result: dict[str, object]) -> None:
    """What the caller gets; the last that a job says."""
    _say("RAY_JOB_RESULT", result)


def about(run: Run, stage: str) -> dict[str, str]:
    """What the log of a job is about."""
    return {"archive": run.spec.archive, "run_id": run.spec.run_id, "stage": stage, "attempt": str(run.attempt)}


def _in_words(ledger: dict[str, Any]) -> str:
    """Where every observation went: counts that are not 0, and why some are quarantined."""
    counts = [f"{name} {count:,}" for name, count in ledger.items() if isinstance(count, int) and count]
    reasons = [f"{reason} {count:,}" for reason, count in ledger.get("reasons", {}).items()]
    return ", ".join(counts) + (f" ({', '.join(reasons)})" if reasons else "")


def _say(word: str, document: dict[str, object]) -> None:
    print(f"{word} {json.dumps(document)}", flush=True)

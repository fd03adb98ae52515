"""`make demo`: the main job, end to end, on a made-up archive: Airflow decides what and when, Ray does how.

Makes the images, starts a private Ray (a head and a second node) and an embedded Airflow, runs `train_model` and then
the re-clustering DAG for each delivery, says what happens as it happens, and leaves no process behind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from infra.local.airflow import LocalAirflow
from infra.local.processes import LocalServiceError
from infra.local.stack import REPOSITORY, local_stack

ARCHIVE = "demo"
_POLL_S = 2.0
_PROGRESS_EVERY = 4  # polls: reading a task's log costs the API server more than reading its state
_RUN_TIMEOUT_S = 3600.0
_SHOWN = {"success": "done", "failed": "FAILED", "up_for_retry": "failed, will be tried again"}


def main() -> None:
    """Run the demo and print where the report lies and what it found."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--size", default="1500")
    folder = REPOSITORY / "var" / "demo"
    arguments = parser.parse_args()
    try:
        _demo(folder, arguments.size)
    except LocalServiceError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("\ndemo: stopped; every process it had started is gone. `make demo` starts again.")


def _demo(folder: Path, size: str) -> None:
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    say("images: making the demo archive" if not (folder / "truth.csv").exists() else "images: there already")
    _atlas("demo", "--images-only", "--out", str(folder), "--size", size)
    deliveries = sorted(path.name for path in (folder / "images" / "archive").iterdir() if path.is_dir())
    say("starting Ray (2 nodes) and Airflow")
    with local_stack(folder, store=str(folder / "store"), say=say) as stack:
        airflow = stack.airflow
        dag = f"recluster_{ARCHIVE}"
        airflow.wait_for_dags({"train_model", dag})
        # The last demo may have been stopped in the middle; the library goes on by itself, Airflow's runs do not.
        for each in ("train_model", dag):
            airflow.end_unfinished_runs(each)
        # The new model would start it at once, for all deliveries together.
        airflow.pause(dag)
        say(f"Airflow is at {airflow.url} (user {airflow.user}, password {airflow.password}) until this ends")
        stamp = int(time.time())
        _follow(
            airflow, "train_model", airflow.trigger("train_model", {"archive": ARCHIVE}, run_id=f"demo-{stamp}"), say
        )
        results = []
        for delivery in deliveries:
            say(f"delivery {delivery}")
            run_id = airflow.trigger(dag, {"delivery": delivery}, run_id=f"demo-{stamp}-{delivery}")
            _follow(airflow, dag, run_id, say)
            results.append(airflow.xcom(dag, run_id, "publish"))
    _conclude(folder, results, say)


def _follow(airflow: LocalAirflow, dag: str, run_id: str, say: Any) -> None:
    """Say each change of a task's state until the run ends; raise with the failing task's log when it fails."""
    shown: dict[str, str | None] = {}
    told: dict[str, int] = {}
    polls = 0
    deadline = time.monotonic() + _RUN_TIMEOUT_S
    while time.monotonic() < deadline:
        states = airflow.task_states(dag, run_id)
        polls += 1
        for task, state in states.items():
            if state != shown.get(task) and state in _SHOWN:
                say(f"  {task}: {_SHOWN[state]}")
            shown[task] = state
            if state == "deferred" and polls % _PROGRESS_EVERY == 0:
                told[task] = _tell_progress(airflow, dag, run_id, task, told.get(task, 0), say)
        state = airflow.run_state(dag, run_id)
        if state == "success":
            return
        if state == "failed":
            failed = [task for task, s in states.items() if s == "failed"]
            log = airflow.task_log(dag, run_id, failed[0]) if failed else ""
            raise LocalServiceError(f"{dag} failed at {failed}. The end of its log:\n{log[-3000:]}")
        time.sleep(_POLL_S)
    raise LocalServiceError(f"{dag} did not end within {_RUN_TIMEOUT_S:.0f} s: {shown}")


def _tell_progress(airflow: LocalAirflow, dag: str, run_id: str, task: str, seen: int, say: Any) -> int:
    """Say the newest of the stage's own progress lines; returns how many lines of the log were seen."""
    lines = airflow.task_log(dag, run_id, task).splitlines()
    news = [line for line in lines[seen:] if f"{task}: " in line and " of " in line]
    if news:
        say(f"  {task}: {news[-1].split(f'{task}: ', 1)[1]}")
    return len(lines)


def _conclude(folder: Path, results: list[dict[str, Any]], say: Any) -> None:
    last = json.loads(_atlas("show", results[-1]["run_uri"], "--json"))["stages"]
    truth = _atlas("demo", "--truth-only", "--out", str(folder)).strip()
    ledger, cluster = last["embed"]["facts"]["ledger"], last["cluster"]["facts"]
    say("finished; nothing is left running")
    print(
        f"\n  report    {results[-1]['report']}"
        f"\n  found     {cluster['clusters']} clusters, {cluster['new_clusters']} of them new in the last delivery"
        f"\n  truth     {truth}"
        f"\n  ledger    {ledger['listed']:,} listed = {ledger['embedded']:,} embedded + {ledger['reused']:,} reused + "
        f"{ledger['duplicate']:,} duplicate + {ledger['quarantined']:,} quarantined"
        f"\n  next      damage-atlas history --store {folder / 'store'} --archive {ARCHIVE}\n"
    )


def _atlas(*arguments: str) -> str:
    result = subprocess.run(
        [str(Path(sys.executable).parent / "damage-atlas"), *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if result.returncode:
        raise LocalServiceError(f"damage-atlas {arguments[0]} failed (exit code {result.returncode}); see above.")
    return result.stdout


if __name__ == "__main__":
    main()

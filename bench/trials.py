"""What Airflow and Ray survive: runs of the real DAG, each struck once at a moment drawn by a seed.

    python -m bench.trials --work var/trials --log docs/trials.jsonl --each 3
    python -m bench.trials --work var/trials --log docs/trials.jsonl --each 10 --minutes 60

A scheduler, a triggerer and a PostgreSQL, a Ray head with two worker nodes, and the project's own re-clustering DAG on
200 images of the demo. Ten ways of striking, at a random moment of a random stage (see ``STRIKES``). Whatever a crash
took is started again after some seconds, as the compose file's restart policy does.

After each trial the reaper runs, and then

* no job of ours lives, nor a process of a worker, which a head that was killed would not know (``orphans``);
* at no time two attempts of one job lived (``duplicates``);
* a crash of somebody else's stopped no job (``healthy_killed``);
* a run that has to survive has published one version, sound, whose tables are those of an undisturbed run; any other
  has published nothing, or such a version where it was ended in `publish` itself.

Waiting is cut short: a task whose worker is dead is missed after 20 s (Airflow's default: 300), a scheduler's or a
triggerer's tasks are taken over after 30 s, retries come after 2 s (the project's: 30).

Results are appended to LOG, with commit, seed, time and stage; the same command goes on with what is not there.
``--again`` also runs the trials again whose last result was bad; the table shows every result, and the exit code says
whether the last one of each trial was good. ``--table`` prints the table of what is there and runs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_ray_jobs.client import RayAddress, RayJobsClient
from bench.scale import ROOT, make_model
from bench.strikes import PEOPLE, STRIKES, Jobs, Moment, TooLate, strike
from damage_atlas.contracts import STAGES_OF_KIND
from damage_atlas.publish import verify_run
from damage_atlas.query import published_run
from damage_atlas.spec import ArchiveSpec, CatalogSpec, ClusterSpec, Settings, dump_yaml
from damage_atlas.store import Store, list_versions
from infra.local.airflow_api import FINISHED
from infra.local.postgres import LocalPostgres
from infra.local.processes import LocalServiceError, commands
from infra.local.stack import LocalStack, local_stack

IMAGES = 200
STAGES = STAGES_OF_KIND["recluster"]
TABLES = (("catalog", "observations.parquet"), ("cluster", "points.parquet"), ("cluster", "clusters.parquet"),
          ("cluster", "lineage.parquet"), ("explain", "explanations.parquet"))  # fmt: skip
ENDS_WITHIN_S = 600
STOPS_WITHIN_S = 60  # of a person's word or a deadline
PATIENCE = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "30",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
}


@dataclass(frozen=True)
class Trial:
    """One strike: which of ten ways, and when."""

    number: int
    strike: str
    stage: str
    share: float  # of the time that the stage's job took undisturbed
    away_s: float  # how long what was killed is gone

    @property
    def archive(self) -> str:
        """The archive that the run is of; what a trial of a timeout needs is a matter of the DAG file."""
        return f"timeout-{self.number}" if self.strike == "task timeout" else "trials"

    @property
    def timeout_s(self) -> float:
        """What the stage gets in a trial of a timeout: less than a job needs to start."""
        return round(1 + 2 * self.share, 1)


def trials(each: int, seed: int) -> Iterator[Trial]:
    """``each`` rounds of all strikes; more rounds leave the first ones as they are."""
    for number in range(each * len(STRIKES)):
        rng = random.Random(f"{seed}-{number}")
        kind = STRIKES[number % len(STRIKES)]
        yield Trial(number, kind, rng.choice(STAGES), round(rng.random(), 3), round(1 + 9 * rng.random(), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--each", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no trial after these")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    log: Path = arguments.log
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    rows = [row for row in rows if row["seed"] == arguments.seed]
    was_good = {row["trial"]["number"]: row["good"] for row in rows}
    done = {number for number, good in was_good.items() if good or not arguments.again}
    left = [trial for trial in trials(arguments.each, arguments.seed) if trial.number not in done]
    if left and not arguments.table:
        end = time.monotonic() + 60 * arguments.minutes
        with Bench(arguments.work.resolve(), left) as bench:
            for trial in left:
                if time.monotonic() > end:
                    break
                row = {"seed": arguments.seed, **bench.run_in_time(trial)}
                rows.append(row)
                was_good[trial.number] = row["good"]
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    print(table(rows))
    sys.exit(not all(was_good.values()))


class Bench:
    """What runs, and what an undisturbed run's tables are."""

    def __init__(self, work: Path, left: list[Trial]) -> None:
        self.work, self.left = work, left
        self.store = Store(work / "store")
        self._stack = ExitStack()

    def __enter__(self) -> Bench:
        with self._stack:
            self.commit = _git_commit()
            images = self._make_inputs()
            postgres = self._stack.enter_context(LocalPostgres(self.work / "postgres"))
            timeouts = {t.archive: (t.stage, t.timeout_s) for t in self.left if t.strike == "task timeout"}
            archives = self.work / "archives"
            shutil.rmtree(archives, ignore_errors=True)
            archives.mkdir()
            for name in ("trials", *timeouts):
                # Of a stage's time the most goes into seeing which clusters come back; of that a trial learns nothing.
                settings = Settings(catalog=CatalogSpec(labels="none"), cluster=ClusterSpec(resamples=1))
                spec = ArchiveSpec(archive=name, images=str(images), model="net", settings=settings)
                (archives / f"{name}.yaml").write_text(dump_yaml(spec))
            self.local: LocalStack = self._stack.enter_context(
                local_stack(
                    self.work,
                    self.store.root,
                    archives=archives,
                    env=PATIENCE | {"DAMAGE_ATLAS_TRIAL_TIMEOUTS": json.dumps(timeouts)},
                    say=lambda text: print(text, flush=True),
                    nodes=3,
                    dags=ROOT / "bench" / "trial_dags",
                    database=postgres.url,
                )
            )
            self.airflow = self.local.airflow
            names = {f"recluster_{name}" for name in ("trials", *timeouts)} | {"reaper"}
            self.airflow.wait_for_dags(names)
            address = RayAddress(self.local.ray.url, self.local.ray.token)
            self.client = self._stack.enter_context(RayJobsClient(address, timeout_s=10))
            self.wanted, self.seconds = self._undisturbed()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make_inputs(self) -> Path:
        """The images' folder. Model and images are made once; what Airflow knew of an earlier bench is gone."""
        demo = self.work / "demo"
        if not (demo / "images").exists():
            command = ["damage-atlas", "demo", "--out", str(demo), "--size", str(IMAGES), "--images-only"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for folder in ("airflow", "ray", "store"):
            shutil.rmtree(self.work / folder, ignore_errors=True)
        make_model(self.store, self.work / "labelled")
        return demo / "images"

    def _undisturbed(self) -> tuple[dict[str, str], dict[str, float]]:
        """Digests of the tables, and how long each stage's job took from being seen first to being seen last."""
        with Jobs(self.client) as jobs:
            run_id = self.airflow.trigger("recluster_trials")
            state = self.airflow.wait_for_run("recluster_trials", run_id, ENDS_WITHIN_S)
        if state != "success":
            raise LocalServiceError(f"The undisturbed run is {state}. Look at {self.airflow.logs}.")
        seconds = {stage: jobs.seconds(f"-{stage}-") for stage in STAGES}
        print(f"undisturbed: {seconds}", flush=True)
        return self._published("trials"), seconds

    def run_in_time(self, trial: Trial) -> dict[str, Any]:
        """One trial; when the run was over before it was struck, once more and earlier."""
        try:
            return self.run(trial)
        except TooLate:
            return self.run_in_time(replace(trial, share=round(trial.share / 2, 3)))

    def run(self, trial: Trial) -> dict[str, Any]:
        """One trial, from an empty archive.

        Raises:
            TooLate: the run was over before it was struck.
        """
        assert self.store.folder is not None
        shutil.rmtree(self.store.folder / "archives" / trial.archive, ignore_errors=True)
        begun, dag = time.monotonic(), f"recluster_{trial.archive}"
        with Jobs(self.client) as jobs:
            run_id = self.airflow.trigger(dag)
            moment = Moment(dag, run_id, trial.stage, trial.share * self.seconds[trial.stage], trial.share)
            struck = strike(trial.strike, moment, self.local, jobs, trial.away_s)
            if trial.strike not in PEOPLE:
                self.airflow.trigger("reaper")  # it looks while what was struck comes back: it must stop nothing
            state = self._end(dag, run_id)
            jobs.wait_until_none_lives(STOPS_WITHIN_S)
            reaper = self.airflow.trigger("reaper")
            reaped = self.airflow.wait_for_run("reaper", reaper, 180)
            time.sleep(5)
            orphans = jobs.living() + [f"process {each.pid}" for each in commands("-m workers.", f"{self.store.root}")]
        survives = trial.strike not in ("mark failed", "task timeout", "DAG-run deletion")
        found = {
            "state": state,
            "reaper": reaped,
            "orphans": orphans,
            "duplicates": sorted(jobs.together),
            "healthy_killed": [] if trial.strike in PEOPLE else jobs.stopped(),
            "attempts": jobs.attempts(),
            "versions": len(list_versions(self.store, trial.archive)),
            "tables_equal": None,
        }
        if struck.stopped is not None:
            found["stopped_after_s"] = jobs.stopped_after(struck.stopped, struck.at)
        good = reaped == "success" and not (orphans or found["duplicates"] or found["healthy_killed"])
        if survives or found["versions"]:
            found["tables_equal"] = found["versions"] == 1 and self._published(trial.archive) == self.wanted
        if survives:
            good &= state == "success" and found["tables_equal"]
        else:
            # Who ends `publish` itself may come too late: then there is a version, and it is whole.
            late = struck.what == "publish" and found["tables_equal"]
            good &= state in ("failed", "deleted") and (found["versions"] == 0 or bool(late))
        stopped_after = found.get("stopped_after_s", 0)
        good &= stopped_after is not None and stopped_after <= STOPS_WITHIN_S
        return {
            "good": good,
            "trial": asdict(trial),
            "struck": struck.what,
            "seconds": round(time.monotonic() - begun, 1),
            "commit": self.commit,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **found,
        }

    def _end(self, dag: str, run_id: str) -> str:
        """How the run ended: success, failed, deleted, or what it is after the time that it has."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        state = "unknown"
        while time.monotonic() < deadline and state not in FINISHED:
            try:
                state = self.airflow.run_state(dag, run_id)
            except LocalServiceError as error:
                if " 404" in str(error):
                    return "deleted"
                raise
            time.sleep(0.5)
        return state

    def _published(self, archive: str) -> dict[str, str]:
        """Digests of what the current version's tables say; refused if its run does not verify."""
        run = published_run(self.store, archive)
        if damaged := verify_run(run):
            return {"damaged": str(damaged)}
        outputs = run.artifact("explain").outputs.items()
        said = {name: str(run.read_table(stage, name).to_pydict()) for stage, name in TABLES}
        # Where a picture lies says which attempt drew it; what is on it must not.
        said["explanations.parquet"] = re.sub(r"explain/attempt-\d+/", "explain/", said["explanations.parquet"])
        said["pictures"] = str(sorted((name, one.sha256) for name, one in outputs if name.startswith("pictures/")))
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in said.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown: each strike with its trials, how many were good, and what the bad ones showed."""
    lines = ["| strike | trials | good | orphans | duplicates | healthy killed | tables equal | job stopped after, s |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for kind in STRIKES:
        own = [row for row in rows if row["trial"]["strike"] == kind]
        compared = [row["tables_equal"] for row in own if row["tables_equal"] is not None]
        after = [row["stopped_after_s"] for row in own if row.get("stopped_after_s") is not None]
        sums = [sum(len(row[name]) for row in own) for name in ("orphans", "duplicates", "healthy_killed")]
        equal = f"{sum(compared)} of {len(compared)}" if compared else "none published"
        span = f"{min(after):.0f} to {max(after):.0f}" if after else ""
        cells = [kind, len(own), sum(row["good"] for row in own), *sums, equal, span]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _git_commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()

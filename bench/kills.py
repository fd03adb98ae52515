"""Killed while catalog and embed run on Ray: twenty trials, each of which must end with an undisturbed run's tables.

    python -m bench.kills --demo var/bench/demo --work var/bench/kills --images 20000 --each 5
    python -m bench.kills --demo var/bench/demo --work var/bench/kills-s3 --images 2000 --each 5 --s3 --spoilt 0.05

Four victims (the job's driver, a Ray worker of it, a worker node, the whole job), each at moments drawn by a seed:
in the catalog, early and late in embed, when the last part is there and the seal is not, and after the seal. A job that
ends badly is started again as its next attempt, as the bridge does. With ``--s3`` pictures and store lie on a real S3
server, which is a fifth victim: it is stopped for 20 seconds; ``--spoilt`` is the share of its answers that a proxy
turns into 503s and resets.

Results are appended to WORK/kills.jsonl; the same command goes on with the trials that are not there. Of images that
were embedded more than once, `redone` says how many: a killed process may lose the part that it had begun.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.scale import ROOT, make_model
from bench.served import on_s3
from bench.shards import make_shards
from damage_atlas.neighbours import read_vectors
from damage_atlas.spec import CatalogSpec, EmbedSpec, Settings
from damage_atlas.store import Run, Store, start_run
from infra.local.ray_cluster import LocalRay

VICTIMS = ("driver", "worker", "node", "job")
MOMENTS = ("catalog", "early in embed", "late in embed", "before the seal", "after the seal")
STAGES = {"catalog": "workers.catalog", "embed": "bench.counted_embed", "index": "workers.index"}
_GIVE_UP = 4  # attempts
_AWAY_S = 20  # the server
_PARTS = 40  # of vectors, at least
_ACTORS = 2


@dataclass(frozen=True)
class Kill:
    """Who is killed, when, and a number between 0 and 1 that says where in that moment, and which of several."""

    victim: str
    moment: str
    share: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--each", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--spoilt", type=float, default=0.0)
    arguments = parser.parse_args()
    shards = arguments.work / "images"
    make_shards(arguments.demo, shards, arguments.images)
    log = arguments.work / "kills.jsonl"
    kept = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    # A folder may hold trials of other sizes and other servers as well; they say nothing of these.
    rows = [row for row in kept if (row["images"], row["spoilt"]) == (arguments.images, arguments.spoilt)]
    with Trials(arguments, shards) as trials:
        wanted = trials.run(None)
        for kill in _kills(arguments):
            if any(row["kill"] == vars(kill) for row in rows):
                continue
            found = trials.run(kill, wanted["parts"])
            row = {
                "kill": vars(kill),
                "attempts": found["attempts"],
                "tables_equal": found["tables"] == wanted["tables"],
                "images": arguments.images,
                "redone": found["begun"] - wanted["begun"],
                "rows_per_part": trials.settings.embed.rows_per_part,
                "spoilt": arguments.spoilt,
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
    good = sum(row["tables_equal"] for row in rows)
    parts = max(row["redone"] / row["rows_per_part"] for row in rows)
    print(f"{good} of {len(rows)} trials ended with the undisturbed run's tables")
    print(f"at most {parts:.1f} parts redone in a trial, with {_ACTORS} actors")
    sys.exit(good < len(rows))


def _kills(arguments: argparse.Namespace) -> Iterator[Kill]:
    rng = random.Random(arguments.seed)
    for victim in (*VICTIMS, "server") if arguments.s3 else VICTIMS:
        for number in range(arguments.each):
            yield Kill(victim, MOMENTS[number % len(MOMENTS)], round(rng.random(), 3))


class Trials:
    """A head and two worker nodes, which may lose one; and where pictures and stores lie."""

    def __init__(self, arguments: argparse.Namespace, shards: Path) -> None:
        self.work: Path = arguments.work
        self.settings = Settings(
            catalog=CatalogSpec(labels="none", in_job_up_to_mib=0),
            embed=EmbedSpec(rows_per_part=min(512, arguments.images // _PARTS), actors=_ACTORS, in_job_up_to=0),
        )
        self.next_node = 4
        self.nodes = [2, 3]
        self.images, self.stores = str(shards), str(self.work / "stores")
        self.begun = self.work / "begun"
        self.count = 0
        self._spoilt = arguments.spoilt
        self._on_s3 = arguments.s3
        self._stack = ExitStack()

    def __enter__(self) -> Trials:
        with self._stack:
            shutil.rmtree(self.work / "stores", ignore_errors=True)
            if self._on_s3:
                served = self._stack.enter_context(on_s3(Path(self.images), self._spoilt))
                self.server, self.images, self.stores = served.server, served.images, served.stores
            env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "lib")]), "BENCH_COUNT_FILE": str(self.begun)}
            os.environ["BENCH_COUNT_FILE"] = env["BENCH_COUNT_FILE"]
            self.ray = LocalRay(self.work / "ray", nodes=3, cpus_per_node=1, env={**os.environ, **env})
            self._stack.enter_context(self.ray)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, kill: Kill | None, parts: int = 0) -> dict[str, Any]:
        """What the stages leave in a store of its own; ``parts`` is how many parts of vectors there will be."""
        self.count += 1
        store = Store(f"{self.stores}/{self.count}")
        make_model(store, self.work / "labelled")
        run = start_run(
            store, kind="recluster", archive="big", images=self.images, model="net", settings=self.settings, run_id="r"
        )
        self.begun.write_text("")
        attempts = {}
        for stage, module in STAGES.items():
            struck = kill is None or stage != ("catalog" if kill.moment == "catalog" else "embed")
            for attempt in range(1, _GIVE_UP + 1):
                command = [sys.executable, "-m", module, run.uri, "--attempt", str(attempt)]
                with (self.work / "job.log").open("ab") as log:
                    job = subprocess.Popen(
                        command, cwd=ROOT, env={**os.environ, **self.ray.client_env}, stdout=log, stderr=log
                    )
                if kill is not None and not struck:
                    struck = True
                    _wait_for(run, kill, parts, job)
                    self._strike(kill, job)
                if job.wait() == 0:
                    break
            attempts[stage] = attempt
        tables, parts = _tables(run)
        if store.folder is not None:
            shutil.rmtree(store.folder)
        begun = sum(int(line) for line in self.begun.read_text().split())
        return {"tables": tables, "parts": parts, "attempts": attempts, "begun": begun}

    def _strike(self, kill: Kill, job: subprocess.Popen[bytes]) -> None:
        workers = _workers()
        if kill.victim == "server":
            self.server.stop()
            time.sleep(_AWAY_S)
            self.server.start()
        if kill.victim == "node":
            self._lose_node(kill.share)
        if kill.victim in ("driver", "job"):
            with suppress(ProcessLookupError):
                job.send_signal(signal.SIGKILL)
        if kill.victim in ("worker", "job"):
            chosen = workers if kill.victim == "job" else workers[int(kill.share * len(workers)) :][:1]
            for process in chosen:
                with suppress(psutil.Error):
                    process.kill()

    def _lose_node(self, share: float) -> None:
        """Kill a worker node with all that runs on it, and bring another up."""
        number = self.nodes.pop(int(share * len(self.nodes)))
        self.ray.kill_node(number)
        self.ray.bring_up_worker(self.next_node)
        self.nodes.append(self.next_node)
        self.next_node += 1


def _wait_for(run: Run, kill: Kill, parts: int, job: subprocess.Popen[bytes]) -> None:
    """Until the moment has come, or the job is over."""
    folder = "archives/big/files" if kill.moment == "catalog" else "archives/big/vectors"
    of_all = {
        "catalog": 0.5 * kill.share,
        "early in embed": 0.4 * kill.share,
        "late in embed": 0.5 + 0.45 * kill.share,
    }.get(kill.moment, 1.0)
    total = 20 if kill.moment == "catalog" else parts
    while job.poll() is None:
        if kill.moment == "after the seal":
            if run.store.exists(f"{run.key}/embed/artifact.json"):
                return
        elif sum(1 for _ in run.store.list(folder)) >= max(1, round(of_all * total)):
            return
        time.sleep(0.02 if run.store.folder is not None else 0.2)


def _workers() -> list[psutil.Process]:
    """Processes of this cluster that run our tasks and actors."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            ours = process.environ().get("BENCH_COUNT_FILE") == os.environ["BENCH_COUNT_FILE"]
            if ours and title.startswith("ray::") and any(w in title for w in ("MapBatches", "_apply", "MapWorker")):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def _tables(run: Run) -> tuple[dict[str, Any], int]:
    """Digests of what the run's tables say, and how many parts of vectors there are."""
    ids, vectors = read_vectors(run)
    catalog = run.read_table("catalog", "observations.parquet")
    assert len(ids) == len(set(ids))
    parts = [name for name in run.artifact("embed").outputs if name.startswith("vectors-")]
    return {
        "observations": hashlib.sha256(str(catalog.to_pydict()).encode()).hexdigest(),
        "vectors": hashlib.sha256("\n".join(ids).encode() + vectors.tobytes()).hexdigest(),
        "ids": hashlib.sha256(run.read("index", "ids.parquet")).hexdigest(),
        "index": hashlib.sha256(run.read("index", "index.faiss")).hexdigest(),
        "ledger": run.artifact("embed").facts["ledger"],
    }, len(parts)


if __name__ == "__main__":
    main()

"""Killed while catalog and embed run on Ray: twenty trials, each of which must end with an undisturbed run's tables.

    python -m bench.kills --demo var/bench/demo --work var/bench/kills --images 20000 --each 5

Four victims (the job's driver, a Ray worker of it, a worker node, the whole job), each at moments drawn by a seed:
before the seal of embed, in its middle, when the last part is there and the seal is not, and after it. A job that ends
badly is started again as its next attempt, as the bridge does. Results are appended to WORK/kills.jsonl.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from bench.scale import ROOT, make_model
from bench.shards import make_shards
from damage_atlas.neighbours import read_vectors
from damage_atlas.spec import CatalogSpec, Settings
from damage_atlas.store import Run, Store, start_run
from infra.local.ray_cluster import LocalRay

VICTIMS = ("driver", "worker", "node", "job")
MOMENTS = ("catalog", "early in embed", "late in embed", "before the seal", "after the seal")
STAGES = ("catalog", "embed", "index")
_GIVE_UP = 4  # attempts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--each", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shards = arguments.work / "images"
    make_shards(arguments.demo, shards, arguments.images)
    rng = random.Random(arguments.seed)
    failures = 0
    with Cluster(arguments.work) as cluster:
        wanted, parts = _tables(_trial(arguments.work, shards, cluster, None, None, 0.0)[0])
        for victim in VICTIMS:
            for number in range(arguments.each):
                moment, share = MOMENTS[number % len(MOMENTS)], rng.random()
                run, attempts = _trial(arguments.work, shards, cluster, victim, moment, share, parts)
                is_equal = _tables(run)[0] == wanted
                failures += not is_equal
                row = {"victim": victim, "moment": moment, "share": round(share, 3), "seed": arguments.seed}
                row |= {"attempts": attempts, "tables_equal": is_equal, "images": arguments.images}
                print(json.dumps(row), flush=True)
                with (arguments.work / "kills.jsonl").open("a") as log:
                    log.write(json.dumps(row) + "\n")
    print(f"{len(VICTIMS) * arguments.each - failures} of {len(VICTIMS) * arguments.each} trials ended well")
    sys.exit(bool(failures))


class Cluster:
    """A head and two worker nodes, which may lose one."""

    def __init__(self, work: Path) -> None:
        env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "lib")])}
        self.ray = LocalRay(work / "ray", nodes=3, cpus_per_node=1, env=env)
        self.next_node = 4
        self.nodes = [2, 3]

    def __enter__(self) -> Cluster:
        self.ray.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.stop()

    def lose_node(self, rng_share: float) -> None:
        """Kill a worker node with all that runs on it, and bring another up."""
        number = self.nodes.pop(int(rng_share * len(self.nodes)))
        self.ray.kill_node(number)
        self.ray.start_worker(self.next_node)
        self.nodes.append(self.next_node)
        self.next_node += 1


def _trial(
    work: Path, shards: Path, cluster: Cluster, victim: str | None, moment: str | None, share: float, parts: int = 0
) -> tuple[Run, dict[str, int]]:
    shutil.rmtree(work / "store", ignore_errors=True)
    store = Store(work / "store")
    make_model(store, work / "labelled")
    settings = Settings(catalog=CatalogSpec(labels="none"))
    run = start_run(store, kind="recluster", archive="big", images=str(shards), model="net", settings=settings)
    attempts = {}
    for stage in STAGES:
        struck = victim is None or (stage == "catalog") != (moment == "catalog") or stage == "index"
        for attempt in range(1, _GIVE_UP + 1):
            command = [sys.executable, "-m", f"workers.{stage}", run.uri, "--attempt", str(attempt)]
            with (work / "job.log").open("ab") as log:
                job = subprocess.Popen(
                    command, cwd=ROOT, env={**os.environ, **cluster.ray.client_env}, stdout=log, stderr=log
                )
            if not struck:
                struck = True
                _wait_for(run, str(moment), share, parts, job)
                _strike(str(victim), job, cluster, share)
            if job.wait() == 0:
                break
        attempts[stage] = attempt
    return run, attempts


def _wait_for(run: Run, moment: str, share: float, parts: int, job: subprocess.Popen[bytes]) -> None:
    """Until the moment has come, or the job is over."""
    folder = "archives/big/files" if moment == "catalog" else "archives/big/vectors"
    of_all = {"catalog": 0.5 * share, "early in embed": 0.4 * share, "late in embed": 0.5 + 0.45 * share}.get(
        moment, 1.0
    )
    seal = Path(f"{run.store.folder}/{run.key}/embed/artifact.json")
    total = 20 if moment == "catalog" else parts
    while job.poll() is None:
        if moment == "after the seal":
            if seal.exists():
                return
        elif sum(1 for _ in run.store.list(folder)) >= max(1, round(of_all * total)):
            return
        time.sleep(0.02)


def _strike(victim: str, job: subprocess.Popen[bytes], cluster: Cluster, share: float) -> None:
    workers = _workers()
    if victim == "node":
        cluster.lose_node(share)
    if victim in ("driver", "job"):
        with suppress(ProcessLookupError):
            job.send_signal(signal.SIGKILL)
    if victim in ("worker", "job"):
        chosen = workers if victim == "job" else workers[int(share * len(workers)) :][:1]
        for process in chosen:
            with suppress(psutil.Error):
                process.kill()


def _workers() -> list[psutil.Process]:
    """Ray's processes that run our tasks and actors."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and any(word in title for word in ("MapBatches", "_apply", "MapWorker")):
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

"""Killed while it trains on Ray: twenty trials, each of which must end with an undisturbed run's weights, bit for bit.

    python -m bench.train_kills --images $DAMAGE_ATLAS_DATA/steel-neu --work var/bench/train-kills
    python -m bench.train_kills --images $DAMAGE_ATLAS_DATA/steel-neu --work var/bench/train-kills-2 --without-ray

200 iterations on two CPU workers of one thread each; five trials in float32, the others in bfloat16. A trial kills one
rank, both, the job's driver, or driver and ranks, at a moment that a seed draws: after a number of iterations, or while
the next checkpoint is being written. A job that ends badly is started again as its next attempt, as the bridge does.
Each trial is a line of WORK/kills.jsonl; the same command goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from damage_atlas.pipeline import run_stage
from damage_atlas.spec import Settings, with_overrides
from damage_atlas.store import Run, Store, start_run
from infra.local.ray_cluster import LocalRay

ROOT = Path(__file__).resolve().parents[1]
VICTIMS = ("rank", "ranks", "driver", "job")
ITERATIONS, CHECKPOINT_EVERY = 200, 10
SETTINGS = (
    "train.input_size=64",
    "train.batch_size=32",
    "train.learning_rate=0.001",
    f"train.iterations={ITERATIONS}",
    f"train.checkpoint_every={CHECKPOINT_EVERY}",
    "train.workers=2",
    "train.shards=2",
    "train.threads_per_shard=1",
)
_GIVE_UP = 4  # attempts
_REDRAWS = 5  # of a moment that came too late: the run had ended before it was struck


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder with a sub-folder for each class")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--each", type=int, default=40, help="images of a class")
    parser.add_argument("--without-ray", action="store_true", help="ranks are processes of bench.train_ranks")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=2, help="trials; Ray's own pauses are longer than its work")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work: Path = arguments.work
    images = few_images(arguments.images, work / "images", arguments.each)
    log = work / "kills.jsonl"
    done = {row["trial"]: row for row in map(json.loads, log.read_text().splitlines())} if log.exists() else {}
    missing = [number for number in range(arguments.trials) if number not in done]
    if missing:
        with nullcontext() if arguments.without_ray else Cluster(work, arguments.at_once) as cluster:
            wanted = {p: undisturbed(work, images, cluster, p) for p in dict.fromkeys(map(precision_of, missing))}

            def run_trial(number: int) -> dict[str, Any]:
                weights, seconds = wanted[precision_of(number)]
                row = trial(work, images, cluster, number, precision_of(number), arguments.seed, seconds)
                return row | {"weights_equal": row.pop("weights") == weights}

            with ThreadPoolExecutor(arguments.at_once) as pool:
                for future in as_completed([pool.submit(run_trial, number) for number in missing]):
                    row = future.result()
                    print(json.dumps(row), flush=True)
                    with log.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    done[row["trial"]] = row
    equal = sum(row["weights_equal"] for row in done.values())
    torn = sum(row["left_half_a_checkpoint"] for row in done.values())
    print(f"{equal} of {len(done)} trials ended with the undisturbed weights; {torn} left half a checkpoint")
    sys.exit(equal < len(done))


def precision_of(number: int) -> str:
    """A quarter of the trials is in float32, spread over victims and moments."""
    return "float32" if number % 4 == number // 4 % 4 else "bf16"


def few_images(source: Path, folder: Path, each: int) -> Path:
    """The first images of each class, so that a trial does not wait for decoding."""
    if not folder.exists():
        for kind in sorted(path for path in source.iterdir() if path.is_dir()):
            (folder / kind.name).mkdir(parents=True)
            for file in sorted(kind.iterdir())[:each]:
                shutil.copy(file, folder / kind.name)
    return folder


class Cluster:
    """Two nodes with a CPU each for a rank of each trial."""

    def __init__(self, work: Path, at_once: int) -> None:
        env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "lib")])}
        self.ray = LocalRay(work / "ray", nodes=2, cpus_per_node=at_once, env=env)

    def __enter__(self) -> Cluster:
        self.ray.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.stop()


def new_run(folder: Path, images: Path, precision: str) -> Run:
    settings = with_overrides(Settings(), [*SETTINGS, f"train.precision={precision}"])
    run = start_run(
        Store(folder), kind="train", archive="kills", images=str(images), model="net", settings=settings, run_id="run"
    )
    run_stage(run, "catalog")
    return run


def start_job(run: Run, cluster: Cluster | None, attempt: int, log: Path) -> subprocess.Popen[bytes]:
    module = "bench.train_ranks" if cluster is None else "workers.train"
    command = [sys.executable, "-m", module, run.uri, "--attempt", str(attempt)]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "RAY_DEDUP_LOGS": "0"}
    if cluster is not None:
        env |= cluster.ray.client_env
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file)


def undisturbed(work: Path, images: Path, cluster: Cluster | None, precision: str) -> tuple[dict[str, str], float]:
    """Digests of the weights of a run that nobody strikes, and how long one of its iterations took."""
    run = new_run(work / f"undisturbed-{precision}", images, precision)
    if run.stage("train").sealed is None and start_job(run, cluster, 1, work / f"{precision}.log").wait():
        sys.exit(f"bench: the undisturbed run failed; see {work / precision}.log.")
    history = run.read_table("train", "history.parquet")
    return digests(run), history["seconds"][-1].as_py() / history.num_rows


def digests(run: Run) -> dict[str, str]:
    outputs = run.artifact("train").outputs
    return {name: outputs[name].sha256 for name in ("model.safetensors", "reference.parquet")}


def trial(
    work: Path, images: Path, cluster: Cluster | None, number: int, precision: str, seed: int, seconds: float
) -> dict[str, Any]:
    """One run that is struck once, and goes on until its model is there."""
    victim = VICTIMS[number % len(VICTIMS)]
    in_a_write = number // len(VICTIMS) % 2 == 1
    for draw in range(_REDRAWS):
        rng = random.Random(f"{seed} {number} {draw}")
        moment = rng.randrange(1, ITERATIONS)
        folder = work / f"trial-{number:02d}"
        shutil.rmtree(folder, ignore_errors=True)
        run = new_run(folder, images, precision)
        log = work / f"trial-{number:02d}.log"
        log.unlink(missing_ok=True)
        job = start_job(run, cluster, 1, log)
        found = wait_for(run, job, log, moment, in_a_write, seconds)
        if job.poll() is None and run.stage("train").sealed is None:
            strike(victim, job, log, rng)
            break
        job.wait()
    else:
        sys.exit(f"bench: trial {number} was over before it was struck, {_REDRAWS} times.")
    attempt = 1
    while job.wait() and attempt < _GIVE_UP:
        attempt += 1
        job = start_job(run, cluster, attempt, log)
    found_weights, torn = digests(run), any(checkpoint_folder(run).glob(".part-*"))
    shutil.rmtree(folder)
    resumed = [int(n) for n in re.findall(r"going on from the checkpoint at iteration (\d+)", log.read_text())]
    return {
        "trial": number,
        "precision": precision,
        "on": "processes" if cluster is None else "Ray Train",
        "victim": victim,
        "moment": "writing a checkpoint" if in_a_write else "an iteration",
        "drawn_iteration": moment,
        "draw": draw,
        "newest_checkpoint": found,
        "left_half_a_checkpoint": torn,
        "resumed_at": sorted(set(resumed)),
        "attempts": attempt,
        "iterations": ITERATIONS,
        "seed": seed,
        "weights": found_weights,
    }


def checkpoint_folder(run: Run) -> Path:
    return Path(f"{run.store.folder}/models/net/{run.spec.run_id}/checkpoints")


def newest_checkpoint(run: Run) -> int:
    return max((int(file.stem) for file in checkpoint_folder(run).glob("[0-9]*.safetensors")), default=0)


def wait_for(run: Run, job: subprocess.Popen[bytes], log: Path, moment: int, in_a_write: bool, seconds: float) -> int:
    """Until ``moment`` has come, or the job is over; returns the newest checkpoint's iteration then.

    Iterations are told by the checkpoints that are there, and between them by the clock.
    """
    before = moment // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    for _ in patiently(job):
        if newest_checkpoint(run) >= before and "rank 0 of 2" in log.read_text():
            break
    if not in_a_write:
        time.sleep((moment - before) * seconds)
        return newest_checkpoint(run)
    # Written in 10 to 50 ms, so that there is no time for a pause between two looks.
    folder = checkpoint_folder(run)
    while job.poll() is None:
        for _ in range(1000):
            with suppress(FileNotFoundError):
                if any(name.startswith(".part-") for name in os.listdir(folder)):
                    return newest_checkpoint(run)
    return newest_checkpoint(run)


def patiently(job: subprocess.Popen[bytes]) -> Iterator[None]:
    while job.poll() is None:
        yield
        time.sleep(0.01)


def strike(victim: str, job: subprocess.Popen[bytes], log: Path, rng: random.Random) -> None:
    ranks = [int(pid) for pid in re.findall(r"pid=(\d+)[^\n]*rank \d of 2", log.read_text())]
    if victim == "rank":
        ranks = [rng.choice(ranks)]
    if victim != "driver":
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if victim in ("driver", "job"):
        job.send_signal(signal.SIGKILL)


if __name__ == "__main__":
    main()

"""Catalog, embed and index on Ray at two sizes: memory, seconds an image, an unchanged archive, and 1% more.

    python -m bench.scale --demo var/bench/demo --work var/bench/scale --images 20000 200000
    python -m bench.scale --demo var/bench/demo --work var/bench/scale-s3 --images 2000 --s3

Memory is the sum of the proportional shares (PSS) of all processes: Ray's, the jobs', and what the object store maps.
Seconds count from a stage's first listing to its seal; what a job needs to start is printed beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from bench.served import on_s3
from bench.shards import PER_SHARD, make_shards
from damage_atlas.contracts import Ledger, VersionRecord
from damage_atlas.pipeline import run_pipeline
from damage_atlas.spec import CatalogSpec, Settings, TrainSpec
from damage_atlas.store import Run, Store, publish_version, start_run
from infra.local.ray_cluster import LocalRay

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("catalog", "embed", "index")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--s3", action="store_true", help="pictures and store on a real S3 server")
    arguments = parser.parse_args()
    results = {n: measure(arguments.demo, arguments.work / str(n), n, arguments.s3) for n in sorted(arguments.images)}
    print(json.dumps(results, indent=1))
    small, large = min(results), max(results)
    if small != large:
        memory = results[large]["first"]["peak_mib"] / results[small]["first"]["peak_mib"]
        pace = (results[large]["first"]["seconds"] / large) / (results[small]["first"]["seconds"] / small)
        print(f"{large:,} against {small:,} images: peak memory {memory:.2f} times, seconds an image {pace:.2f} times")
    for n, result in results.items():
        for what in ("unchanged", "one percent more"):
            share = result[what]["seconds"] / result["first"]["seconds"]
            read = result[what]["files_read"]
            print(f"{n:,} images, {what}: {share:.1%} of the first run, {read} tar files read")


def measure(demo: Path, work: Path, images: int, is_on_s3: bool) -> dict[str, Any]:
    """Three runs over one archive: from nothing, unchanged, with 1% more, but a tar file at least."""
    shards = work / "images"
    make_shards(demo, shards, images)
    for extra in sorted(shards.glob("shard-*.tar"))[images // PER_SHARD :]:
        extra.unlink()
    shutil.rmtree(work / "store", ignore_errors=True)
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "lib")])}
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        served = stack.enter_context(on_s3(shards, spoilt=0)) if is_on_s3 else None
        store = Store(served.stores if served else work / "store")
        make_model(store, work / "labelled")
        env = {**os.environ, **env}
        ray = stack.enter_context(
            LocalRay(work / "ray", nodes=2, cpus_per_node=1, env=env, object_store_bytes=512 * 1024**2)
        )
        for name in ("first", "unchanged", "one percent more"):
            if name == "one percent more":
                make_shards(demo, shards, max(images // 100, PER_SHARD), first=images // PER_SHARD)
                if served:
                    served.upload(shards)
            found[name], run = run_once(store, served.images if served else str(shards), name.replace(" ", "-"), ray)
            publish(run)
            print(f"{images:,} images, {name}: {json.dumps(found[name])}", flush=True)
    return found


def make_model(store: Store, folder: Path) -> None:
    """A model of the paper's size; what it has learnt does not matter here."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for n in range(8):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{n}.png")
    settings = Settings(train=TrainSpec(iterations=1, batch_size=8))
    run = start_run(store, kind="train", archive="big", images=str(folder), model="net", settings=settings)
    list(run_pipeline(run))


def publish(run: Run) -> None:
    """Make the run the version on which the next one builds, as if its clusters had been found too."""
    version = (run.spec.previous_version or 0) + 1
    asked = {"archive": run.spec.archive, "run_id": run.spec.run_id, "run_key": run.key}
    record = VersionRecord(version=version, **asked, artifacts={}, ledger=Ledger(), clusters=0, next_cluster_id=1)
    publish_version(run.store, record)


def run_once(store: Store, images: str, run_id: str, ray: LocalRay) -> tuple[dict[str, Any], Run]:
    """The stages of one run as jobs on ``ray``, watched."""
    settings = Settings(catalog=CatalogSpec(labels="none"))
    run = start_run(
        store, kind="recluster", archive="big", images=images, model="net", settings=settings, run_id=run_id
    )
    result: dict[str, Any] = {"stages": {}}
    with MemoryWatch() as watch:
        for stage in STAGES:
            started = time.monotonic()
            command = [sys.executable, "-m", f"workers.{stage}", run.uri]
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **ray.client_env}, capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(done.stdout[-4000:] + done.stderr[-4000:])
            seconds = run.artifact(stage).seconds
            result["stages"][stage] = seconds
            result["stages"][f"{stage} start-up"] = round(time.monotonic() - started - seconds, 1)
    result["seconds"] = round(sum(result["stages"][stage] for stage in STAGES), 1)
    result["peak_mib"] = watch.peak_mib
    result |= facts(run)
    return result, run


def facts(run: Run) -> dict[str, Any]:
    """What the run says it did; every image must be in the ledger once."""
    ledger = run.artifact("embed").facts["ledger"]
    ids = run.read_table("catalog", "observations.parquet", ["observation_id"])["observation_id"]
    assert len(ids.unique()) == len(ids) == ledger["listed"], "an observation stands in the ledger twice"
    return {
        "files_read": run.artifact("catalog").facts["files_read"],
        "images_decoded": run.artifact("embed").counts["in"],
        "ledger": {name: n for name, n in ledger.items() if n and name != "reasons"},
    }


class MemoryWatch:
    """The largest sum of PSS over this process's descendants, looked at every two seconds."""

    def __init__(self) -> None:
        self.peak_mib = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(2):
            total = 0
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.peak_mib = max(self.peak_mib, total >> 20)


if __name__ == "__main__":
    main()

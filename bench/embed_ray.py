"""Embedding on Ray: our two steps against `read_images` and `map_batches` as Ray Data's documentation writes them.

    python -m bench embed_ray

Both on one cluster of this machine's cores, the same files; from the first result to the last, so that
neither pays for starting its actors.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from bench.embed import close_ups, run_over
from damage_atlas.embed.plan import plan_embedding
from damage_atlas.network import DamageNet
from damage_atlas.store import Run
from infra.local.ray_cluster import LocalRay
from workers.embed import embed_on_ray

_ROUNDS = 3
_ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    env = {"PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "lib")])}
    with tempfile.TemporaryDirectory(prefix="damage-atlas-bench-") as folder:
        close_ups(Path(folder))
        with LocalRay(Path(folder) / "ray", nodes=1, cpus_per_node=os.cpu_count() or 2, env=env) as cluster:
            # A process of its own: Ray takes its token from the environment when it is imported.
            command = [sys.executable, "-m", "bench.embed_ray", folder]
            subprocess.run(command, cwd=_ROOT, env={**os.environ, **cluster.client_env}, check=True)


def measure(folder: Path) -> None:
    """Both in turn, on the cluster that the environment names."""
    ray.init(address="auto", log_to_driver=False, logging_level="WARNING")
    files = sorted((folder / "images").iterdir())
    rates: dict[str, list[float]] = {"ours": [], "Ray Data's recipe": []}
    for number in range(_ROUNDS):
        rates["ours"].append(_ours(run_over(folder, files, number)))
        rates["Ray Data's recipe"].append(_recipe(files))
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in median.items():
        print(f"{name}: {rate:,.0f} images/s, median of {_ROUNDS}")
    ours, theirs = median.values()
    print(f"ratio {ours / theirs:.2f} (wanted: 1.5)")


def _ours(run: Run) -> float:
    parts = plan_embedding(run, run.stage("embed")).parts
    seen, started = 0, None
    for result in embed_on_ray(run, parts):
        if started is None:
            started = time.perf_counter()
        else:
            seen += (result.output.rows if result.output else 0) or 0
    assert started is not None
    return seen / (time.perf_counter() - started)


class Embedder:
    """As in the guide to batch inference: the model in ``__init__``, a batch in ``__call__``."""

    def __init__(self) -> None:
        self.model = DamageNet(160).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = torch.as_tensor(np.stack(batch["image"]).transpose(0, 3, 1, 2).astype("float32") / 255)
        with torch.inference_mode():
            return {"vector": self.model(images).numpy()}


def _recipe(files: list[Path]) -> float:
    images = ray.data.read_images(str(files[0].parent), size=(160, 160), mode="RGB")
    # One actor fewer than cores: those that read wait for ever where actors hold every CPU.
    pool = ray.data.ActorPoolStrategy(size=max((os.cpu_count() or 2) - 1, 1))
    vectors = images.map_batches(Embedder, batch_size=64, compute=pool)
    seen, started = 0, None
    for batch in vectors.iter_batches(batch_size=None):
        if started is None:
            started = time.perf_counter()
        else:
            seen += len(batch["vector"])
    assert started is not None
    return seen / (time.perf_counter() - started)


if __name__ == "__main__":
    measure(Path(sys.argv[1]))

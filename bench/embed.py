"""Embedding JPEG files, end to end, against what its steps allow and against two recipes as people write them.

    python -m bench embed

The demo's close-ups (256 x 256 pixels), the paper's network at 160 pixels, as many threads as there are cores for
everybody, in one run, each in turn. The first part of each is left out: caches, threads, loading of the model.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from damage_atlas.demo import make_demo
from damage_atlas.embed import EmbedPart
from damage_atlas.embed.plan import plan_embedding
from damage_atlas.embed.work import DecodePart, ForwardPart
from damage_atlas.network import DamageNet
from damage_atlas.pipeline import run_pipeline, run_stage
from damage_atlas.spec import CatalogSpec, EmbedSpec, Settings, TrainSpec
from damage_atlas.store import Run, Store, start_run

_IMAGES = 2400
_ROUNDS = 3
_SIZE = 160


def main() -> None:
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="damage-atlas-bench-") as folder:
        files = close_ups(Path(folder))
        rates: dict[str, list[float]] = {}
        for round_number in range(_ROUNDS):
            run = run_over(Path(folder), files, round_number)
            for name, rate in _measure(run, files, cores):
                rates.setdefault(name, []).append(rate)
    median = {name: statistics.median(values) for name, values in rates.items()}
    bound = 1 / (1 / median["decode alone"] + 1 / median["forward alone"])
    ours = median["end to end"]
    print(f"{len(files)} images, {cores} threads, medians of {_ROUNDS}:")
    for name, rate in median.items():
        print(f"  {name}: {rate:,.0f} images/s")
    print(f"end to end: {ours / bound:.2f} of what decoding and the forward pass allow (wanted: 0.75)")
    print(f"against the plain DataLoader loop: ratio {ours / median['plain DataLoader']:.2f} (wanted: 4)")
    print("against Ray Data's read_images + map_batches: python -m bench embed_ray")


def close_ups(folder: Path) -> list[Path]:
    """Files of 256 x 256 pixels, in ``folder/images``."""
    make_demo(folder / "demo", size=_IMAGES, deliveries=1, photo_px=(512, 512))
    images = folder / "images"
    images.mkdir()
    files = []
    for path in sorted((folder / "demo" / "images").rglob("*.jpg")):
        if path.is_symlink():
            continue
        try:
            with Image.open(path) as image:
                image.load()
                if image.size != (256, 256):
                    continue
        except OSError:
            continue  # the demo plants broken files
        files.append(path.rename(images / f"{len(files):05d}.jpg"))
    return files


def run_over(folder: Path, files: list[Path], number: int) -> Run:
    """A run whose catalog is sealed, in a store of its own, so that nothing is embedded yet."""
    store = Store(folder / f"store-{number}")
    labelled = folder / f"labelled-{number}"
    for i, path in enumerate(files[:16]):
        (labelled / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (labelled / "ab"[i % 2] / path.name).write_bytes(path.read_bytes())
    settings = Settings(train=TrainSpec(iterations=1, batch_size=8, input_size=_SIZE))
    arguments = {"archive": "bench", "model": "net"}
    list(run_pipeline(start_run(store, kind="train", images=str(labelled), settings=settings, **arguments)))
    settings = Settings(catalog=CatalogSpec(labels="none"), embed=EmbedSpec(rows_per_part=128, in_job_up_to=0))
    run = start_run(store, kind="recluster", images=str(files[0].parent), settings=settings, **arguments)
    run_stage(run, "catalog")
    return run


def _measure(run: Run, files: list[Path], cores: int) -> Iterator[tuple[str, float]]:
    parts = plan_embedding(run, run.stage("embed")).parts
    sizes = [part.size for part in parts]
    decode, forward = DecodePart(run.uri), ForwardPart(run.uri)
    rate, decoded = _rate(decode, parts, sizes, cores)
    yield "decode alone", rate
    pixels = [part.pixels_NSSC for part in decoded]

    def forward_alone(pixels_NSSC: np.ndarray) -> None:
        torch.set_num_threads(1)
        forward.embed(pixels_NSSC)

    yield "forward alone", _rate(forward_alone, pixels, sizes, cores)[0]
    yield "end to end", _rate(EmbedPart(run.uri), parts, sizes, cores)[0]
    yield "plain DataLoader", _plain(files, cores)


def _rate(
    function: Callable[[Any], Any], parts: Sequence[Any], sizes: list[int], cores: int
) -> tuple[float, list[Any]]:
    """Images a second over all parts but the first of each thread, and the results."""
    with ThreadPoolExecutor(cores) as pool:
        results = list(pool.map(function, parts[:cores]))
        started = time.perf_counter()
        results += pool.map(function, parts[cores:])
        seconds = time.perf_counter() - started
    return sum(sizes[cores:]) / seconds, results


class _Files(Dataset[torch.Tensor]):
    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        image = Image.open(self.files[i]).convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().sub(127.5).div(63.75)


@torch.no_grad()
def _plain(files: list[Path], cores: int) -> float:
    """A DataLoader with Pillow, float32 and the default layout."""
    torch.set_num_threads(cores)
    network = DamageNet(_SIZE).eval()
    started, seen = None, 0
    for batch in DataLoader(_Files(files), batch_size=64, num_workers=cores):
        network(batch)
        if started is None:
            started = time.perf_counter()
        else:
            seen += len(batch)
    assert started is not None
    return seen / (time.perf_counter() - started)

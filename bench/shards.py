"""Large archives to measure with: drawn demo images, turned, mirrored and lit anew, in tar shards of a thousand.

    python -m bench.shards --demo var/bench/demo --out var/bench/200k --images 200000

The demo's images come from `damage-atlas demo --images-only`. The same arguments give the same pixels.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from damage_atlas.progress import Progress

PER_SHARD = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first shard")
    arguments = parser.parse_args()
    make_shards(arguments.demo, arguments.out, arguments.images, arguments.first)


def make_shards(demo: Path, out: Path, images: int, first: int = 0) -> None:
    """Write ``images`` images in ``out/shard-…​.tar``; shards that are there stay as they are."""
    close_ups = sorted(path for path in (demo / "images").rglob("*.jpg") if path.stat().st_size < 200_000)
    if not close_ups:
        sys.exit(f"{demo} holds no demo. Make one: damage-atlas demo --out {demo} --images-only")
    out.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + -(-images // PER_SHARD))
    with ProcessPoolExecutor() as pool, Progress("shards", "images", images) as progress:
        for written in pool.map(partial(_make_shard, close_ups, out), numbers):
            progress.add(written)


def _make_shard(close_ups: list[Path], out: Path, number: int) -> int:
    path = out / f"shard-{number:05d}.tar"
    if path.exists():
        return PER_SHARD
    part = path.with_suffix(".part")
    with tarfile.open(part, "w") as tar:
        for i in range(number * PER_SHARD, (number + 1) * PER_SHARD):
            data = _variant(close_ups[i % len(close_ups)], i)
            info = tarfile.TarInfo(f"asset-{i % 97:02d}/{i:08d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    part.rename(path)
    return PER_SHARD


def _variant(path: Path, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    try:
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.float32)
    except OSError:  # the demo plants broken files
        pixels = rng.uniform(0, 255, (256, 256, 3)).astype(np.float32)
    pixels = np.rot90(pixels, rng.integers(4))[:, :: rng.choice([-1, 1])]
    pixels = np.clip(pixels * rng.uniform(0.85, 1.15) + rng.uniform(-8, 8), 0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "JPEG", quality=85)
    return sink.getvalue()


if __name__ == "__main__":
    main()

"""Damaged files by the thousand through catalog and embed: nothing dies, nothing hangs, nothing is lost.

    python -m bench.fuzz --files 20000 --seed 0

JPEG, PNG, TIFF and WebP pictures with flipped bits, cut-off tails, headers of another format, and random bytes. Every
file must be in the ledger, and every file that a strict reader opens must have a vector: Pillow opens it and, where it
is a JPEG, libjpeg-turbo has no warning. Prints what became of them, and exits with 1 when a file is missing.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from damage_atlas.decoding import pictures
from damage_atlas.decoding.faults import DECODER_FAULTS
from damage_atlas.pipeline import run_pipeline, run_stage
from damage_atlas.spec import CatalogSpec, Settings, TrainSpec
from damage_atlas.store import Store, start_run

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
_PER_FOLDER = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="damage-atlas-fuzz-") as folder:
        problems = fuzz(Path(folder), arguments.files, arguments.seed)
    print("\n".join(problems) or "every file is in the ledger, and all that a strict reader opens are embedded")
    sys.exit(bool(problems))


def fuzz(folder: Path, files: int, seed: int) -> list[str]:
    """Make the files, run both stages, and say what is wrong."""
    images = folder / "images"
    made = dict(make_files(images, files, seed))
    store = Store(folder / "store")
    for label in ("a", "b"):
        (folder / "labelled" / label).mkdir(parents=True)
        for n in range(8):
            picture(random.Random(f"{label}{n}")).save(folder / "labelled" / label / f"{n}.png")
    settings = Settings(train=TrainSpec(iterations=1, batch_size=8, input_size=32))
    chosen = {"archive": "fuzz", "model": "net"}
    list(run_pipeline(start_run(store, kind="train", images=str(folder / "labelled"), settings=settings, **chosen)))
    settings = Settings(catalog=CatalogSpec(labels="none", max_quarantined_share=1, decode_limit_s=10))
    run = start_run(store, kind="recluster", images=str(images), settings=settings, **chosen)
    started = time.monotonic()
    run_stage(run, "catalog")
    run_stage(run, "embed")
    seconds = time.monotonic() - started

    rows = run.read_table("catalog", "observations.parquet", ["file", "image_id", "status", "reason"]).to_pylist()
    late = {row["image_id"] for row in run.read_table("embed", "failed.parquet").to_pylist()}
    status = {row["file"]: row["status"] if row["image_id"] not in late else "quarantined" for row in rows}
    with ProcessPoolExecutor(max_tasks_per_child=500) as pool:
        opens = dict(
            zip(made, pool.map(strict_reader_opens, (images / name for name in made), chunksize=50), strict=True)
        )
    ledger = run.artifact("embed").facts["ledger"]
    print(f"{len(rows):,} of {len(made):,} files in the ledger in {seconds:.0f} s: {ledger}")
    print(
        "by what was done to them, readable/all:",
        {
            kind: f"{sum(status.get(n) != 'quarantined' for n in names)}/{len(names)}"
            for kind, names in sorted(_by_kind(made).items())
        },
    )
    print(
        "refused though a strict reader opens them:",
        Counter(row["reason"] for row in rows if status[row["file"]] == "quarantined" and opens[row["file"]]),
    )
    missing = [f"{name} is not in the ledger" for name in made if name not in status]
    refused = [
        f"{row['file']} ({made[row['file']]}) is refused ({row['reason']}) though a strict reader opens it"
        for row in rows
        if status[row["file"]] == "quarantined" and opens[row["file"]] and not _allowed(images / row["file"])
    ]
    return missing + refused


def _allowed(path: Path) -> bool:
    """Whether the refusal is one of the catalog's own rules, which no damage has to do with."""
    try:
        pictures.decode(path.read_bytes())
    except pictures.ImageError as error:
        return error.reason in ("bomb", "too_small") or "CIELAB" in error.detail
    return False


def _by_kind(made: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, kind in made.items():
        found.setdefault(kind, []).append(name)
    return found


def strict_reader_opens(path: Path) -> bool:
    """Whether Pillow opens and decodes the file, and libjpeg-turbo does so without a warning."""
    try:
        with Image.open(path, formats=pictures.FORMATS) as image:
            image.load()
            image.convert("RGB")
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                simplejpeg.decode_jpeg(path.read_bytes(), strict=True)
        return True
    except (*DECODER_FAULTS, MemoryError):
        return False


def picture(rng: random.Random) -> Image.Image:
    """A picture with edges and noise, grey or in colours, of any shape."""
    width, height = rng.randrange(16, 200), rng.randrange(16, 200)
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height))
    return image.convert(rng.choice(["RGB", "RGB", "L", "RGBA", "P"]))


def make_files(folder: Path, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Write ``count`` files; yields the name of each and what was done to it."""
    rng = random.Random(seed)
    for number in range(count):
        kind = FORMATS[number % len(FORMATS)]
        image = picture(rng)
        if kind == "JPEG" and image.mode not in ("RGB", "L"):
            image = image.convert("RGB")
        sink = io.BytesIO()
        options = {"compression": rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])}
        if options["compression"] == "jpeg":
            image = image.convert("RGB")
        image.save(sink, kind, **(options if kind == "TIFF" else {}))
        done, data = mutate(sink.getvalue(), rng)
        name = f"{number // _PER_FOLDER:03d}/{number:06d}.{kind.lower()}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        yield name, done


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One kind of damage."""
    done = rng.choice(["untouched", "bits", "many bits", "cut", "header", "swap", "noise", "zeros", "inserted"])
    changed = bytearray(data)
    if done in ("bits", "many bits"):
        for _ in range(rng.randrange(1, 4) if done == "bits" else rng.randrange(10, 200)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif done == "cut":
        del changed[rng.randrange(len(changed)) :]
    elif done == "header":
        changed[: rng.randrange(1, 64)] = rng.randbytes(rng.randrange(1, 64))
    elif done == "swap":
        changed[:8] = rng.choice(
            [b"\xff\xd8\xff\xe0\0\x10JF", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0", b"RIFF\xff\0\0\0"]
        )
    elif done == "noise":
        changed = bytearray(rng.randbytes(rng.randrange(1, 3000)))
    elif done == "zeros":
        start = rng.randrange(len(changed))
        changed[start:] = bytes(len(changed) - start)
    elif done == "inserted":
        at = rng.randrange(len(changed))
        changed[at:at] = rng.randbytes(rng.randrange(1, 500))
    return done, bytes(changed)


if __name__ == "__main__":
    main()

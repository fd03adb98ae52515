"""Severstal: Steel Defect Detection, as Kaggle hands it out: train.csv with masks as run lengths, and train_images.

Pictures of 1600 x 256 pixels are seen as squares of 256, as in the paper.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from damage_atlas.datasets.manifest import NORMAL, LeftOut, Row
from damage_atlas.errors import InputError

WIDTH, HEIGHT = 1600, 256
_SIDE, _STEP = 256, 224  # 224 is the step with which seven squares reach from edge to edge
_LEAST_PIXELS = 256  # of a defect in a square; fewer are the edge of one that the next square shows
_CLASSES = ("1", "2", "3", "4")

Ints = NDArray[np.int64]


def read(source: Path, paper: bool, left_out: LeftOut) -> Iterator[Row]:
    """Seven rows for each picture: the class that covers most of the square, or ``normal`` where none does.

    A square with less of a defect than 256 pixels is left out: it shows an edge, or what a mask overhangs.

    Args:
        paper: changes nothing: its five classes are these.

    Raises:
        InputError: the table or the pictures are not there, or a mask cannot be understood.
    """
    del paper
    table, folder = source / "train.csv", source / "train_images"
    if not table.is_file() or not folder.is_dir():
        raise InputError(f"{source} has no train.csv and train_images. Is it where Severstal's files were unpacked?")
    masks = _read_masks(table)
    files = sorted(file.name for file in folder.iterdir() if file.suffix.lower() == ".jpg")
    if lost := sorted(set(masks) - set(files)):
        left_out["named in train.csv and not there"] += len(lost)
    for name in files:
        covered = {kind: _columns(runs, f"{table}, {name}") for kind, runs in masks.get(name, {}).items()}
        for x in range(0, WIDTH - _SIDE + 1, _STEP):
            pixels = {kind: int(columns[x : x + _SIDE].sum()) for kind, columns in covered.items()}
            most = max(pixels, key=lambda kind: (pixels[kind], kind), default=None)
            if most is None or pixels[most] == 0:
                label = NORMAL
            elif pixels[most] >= _LEAST_PIXELS:
                label = f"defect_{most}"
            else:
                left_out[f"squares with fewer than {_LEAST_PIXELS} pixels of a defect"] += 1
                continue
            yield Row(f"{folder.name}/{name}", label, name, (x, 0, _SIDE, HEIGHT))


def _read_masks(table: Path) -> dict[str, dict[str, str]]:
    """File -> class -> run lengths. Both forms of the table: a column for file and class, or one for each."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    with table.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        names = set(rows.fieldnames or ())
        if "EncodedPixels" not in names or not names & {"ImageId", "ImageId_ClassId"}:
            raise InputError(f"{table}: wanted are the columns ImageId, ClassId and EncodedPixels.")
        for row in rows:
            name, kind = row.get("ImageId"), row.get("ClassId")
            if name is None or kind is None:
                name, _, kind = (row.get("ImageId_ClassId") or row.get("ImageId") or "").rpartition("_")
            if kind not in _CLASSES:
                raise InputError(f"{table}, line {rows.line_num}: {kind!r} is no class; {', '.join(_CLASSES)} are.")
            runs = (row["EncodedPixels"] or "").strip()
            if runs not in ("", "-1"):
                found[name][kind] = runs
    return found


def _columns(runs: str, where: str) -> Ints:
    """Pixels of a mask in each column: runs are pairs of start and length, from 1 on, down each column in turn."""
    try:
        numbers = np.array(runs.split(), np.int64)
        starts, lengths = numbers[::2] - 1, numbers[1::2]
        if len(starts) != len(lengths) or not (numbers >= 0).all() or not (numbers <= WIDTH * HEIGHT).all():
            raise ValueError
        # One after the other, as the encoding has them: else a line of text could name pixels without end.
        if starts[0] < 0 or (starts[1:] < (starts + lengths)[:-1]).any() or starts[-1] + lengths[-1] > WIDTH * HEIGHT:
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(f"{where}: {runs[:40]!r} are no run lengths of {WIDTH} x {HEIGHT} pixels.") from None
    pixels = np.repeat(starts - np.r_[0, lengths[:-1].cumsum()], lengths) + np.arange(lengths.sum())
    return np.bincount(pixels // HEIGHT, minlength=WIDTH)

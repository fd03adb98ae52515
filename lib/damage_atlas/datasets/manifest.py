"""Rows of a manifest, and the CSV file that they are written to."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from damage_atlas.errors import InputError

NORMAL = "normal"  # nothing is wrong
_COLUMNS = ("file", "label", "group", "tile_x", "tile_y", "tile_width", "tile_height", "split")

Box = tuple[int, int, int, int]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Row:
    """A picture, or a box of one."""

    file: str  # relative to the data set's folder
    label: str  # several joined by +
    group: str | None = None  # what must not straddle a split
    box: Box | None = None
    split: str | None = None
    name: str | None = None  # the picture's in the owners' own layout, wherever it was unpacked to; by default the file

    @property
    def digest(self) -> bytes:
        """What it is drawn by, the same for everybody."""
        return hashlib.sha256(f"{self.name or self.file} {self.box}".encode(errors="replace")).digest()


class LeftOut(Counter[str]):
    """Why pictures are not in the manifest -> how many."""


@dataclass(frozen=True)
class Prepared:
    """A manifest that was written.

    Attributes:
        classes: label -> images.
        settings: assignments that a run on it wants.
    """

    images: Path
    manifest: Path
    classes: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)
    settings: tuple[str, ...] = ()


def write_manifest(
    rows: Sequence[Row], source: Path, out: Path, each: int | None, left_out: LeftOut, settings: Sequence[str]
) -> Prepared:
    """Write at most ``each`` rows of each label.

    Raises:
        InputError: there is nothing to write.
    """
    if not rows:
        told = ", ".join(f"{count} {why}" for why, count in left_out.items()) or "no picture was found"
        raise InputError(f"{source}: nothing to learn from ({told}).")
    chosen = _at_most(_once_each(rows, left_out), each, left_out)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for row in chosen:
        box = row.box or ("", "", "", "")
        writer.writerow((row.file, row.label, row.group or "", *box, row.split or ""))
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    unfinished.write_bytes(text.getvalue().encode())
    unfinished.replace(out)
    classes = dict(sorted(Counter(row.label for row in chosen).items()))
    wanted = ("catalog.labels=none", f"catalog.manifest={out.resolve()}", *settings)
    return Prepared(source, out, classes, dict(left_out), wanted)


def _once_each(rows: Sequence[Row], left_out: LeftOut) -> list[Row]:
    """Each picture, or box of one, once: an annotation file that was copied names them again."""
    found: dict[tuple[str, Box | None], Row] = {}
    for row in rows:
        if found.setdefault((row.file, row.box), row) is not row:
            left_out["that are named twice"] += 1
    return list(found.values())


def _at_most(rows: Sequence[Row], each: int | None, left_out: LeftOut) -> list[Row]:
    """Of each label those with the smallest digests of their names, in the order in which they came."""
    if each is None:
        return list(rows)
    of_label: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        of_label[row.label].append(i)

    kept = {i for members in of_label.values() for i in sorted(members, key=lambda i: rows[i].digest)[:each]}
    if len(kept) < len(rows):
        left_out[f"beyond {each} of their class"] += len(rows) - len(kept)
    return [row for i, row in enumerate(rows) if i in kept]

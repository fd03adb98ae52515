"""Rows of a manifest, and the CSV file that they are written to."""

from __future__ import annotations

import csv
import hashlib
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
    chosen = _at_most(rows, each, left_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for row in chosen:
            box = row.box or ("", "", "", "")
            writer.writerow((row.file, row.label, row.group or "", *box, row.split or ""))
    classes = dict(sorted(Counter(row.label for row in chosen).items()))
    wanted = ("catalog.labels=none", f"catalog.manifest={out.resolve()}", *settings)
    return Prepared(source, out, classes, dict(left_out), wanted)


def _at_most(rows: Sequence[Row], each: int | None, left_out: LeftOut) -> list[Row]:
    """Of each label those with the smallest digests of their names, in the order in which they came."""
    if each is None:
        return list(rows)
    of_label: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        of_label[row.label].append(i)

    def digest(i: int) -> bytes:
        return hashlib.sha256(f"{rows[i].file} {rows[i].box}".encode()).digest()

    kept = {i for members in of_label.values() for i in sorted(members, key=digest)[:each]}
    if len(kept) < len(rows):
        left_out[f"beyond {each} of their class"] += len(rows) - len(kept)
    return [row for i, row in enumerate(rows) if i in kept]

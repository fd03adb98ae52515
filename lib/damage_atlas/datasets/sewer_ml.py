"""Sewer-ML as it is handed out: SewerML_Train.csv and SewerML_Val.csv, a column for each code; folders of frames."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from damage_atlas.datasets.manifest import NORMAL, LeftOut, Row
from damage_atlas.errors import InputError
from damage_atlas.labels import SEWER_ML_IMPORTANCE

_TABLES = {"SewerML_Train.csv": "train", "SewerML_Val.csv": "test"}
# The paper's groups beside the normal ones, as its section 3.4 names them.
_OF_THE_PAPER = {"RB": "crack_break_collapse", "FS": "displaced_joint", "OB": "surface_damage"}


def read(source: Path, paper: bool, left_out: LeftOut) -> Iterator[Row]:
    """A row for each frame, with its codes (``FS+RB``), or ``normal``; the owners' split is kept.

    Args:
        paper: its four groups alone, of frames that show one of them and nothing else.

    Raises:
        InputError: no table, or none of its frames.
    """
    tables = {file: _TABLES[file.name] for file in sorted(source.rglob("SewerML_*.csv")) if file.name in _TABLES}
    if not tables:
        raise InputError(f"{source} has no {' or '.join(_TABLES)}. Is it where Sewer-ML was unpacked?")
    frames: dict[str, str] = {}
    for frame in sorted(source.rglob("*.png")):
        if frame.name in frames:
            raise InputError(f"{source}: {frames[frame.name]} and {frame.relative_to(source)} have one name. Keep one.")
        frames[frame.name] = frame.relative_to(source).as_posix()
    for table, split in tables.items():
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            if missing := {"Filename", *SEWER_ML_IMPORTANCE} - set(rows.fieldnames or ()):
                raise InputError(f"{table}: the columns {', '.join(sorted(missing))} are not there.")
            for row in rows:
                codes = [code for code in SEWER_ML_IMPORTANCE if (row[code] or "").strip() == "1"]
                file = frames.get(row["Filename"])
                if file is None:
                    left_out["frames that are not there: an archive was not unpacked"] += 1
                elif not codes:
                    yield Row(file, NORMAL, split=split, name=row["Filename"])
                elif not paper:
                    yield Row(file, "+".join(codes), split=split, name=row["Filename"])
                elif len(codes) == 1 and codes[0] in _OF_THE_PAPER:
                    yield Row(file, _OF_THE_PAPER[codes[0]], split=split, name=row["Filename"])
                else:
                    left_out["frames with several codes, or others than the paper's"] += 1

"""A manifest: a table that says which files count, and what they show."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from damage_atlas.catalog.annotations import Annotations, parse_annotations
from damage_atlas.catalog.listing import ListedFile
from damage_atlas.errors import InputError
from damage_atlas.images import Tile
from damage_atlas.store.runs import table_from_bytes

_FILE_COLUMN = "file"
_BOX_COLUMNS = ("tile_x", "tile_y", "tile_width", "tile_height")
_SPLITS = ("train", "test")
NOT_THERE = "named in the manifest and not there"

# File -> what is said of it: once, or of each of its boxes. Beside annotations there may be ``tile`` and ``split``.
Manifest = dict[str, list[Annotations]]


def read_manifest(data: bytes, where: str) -> Manifest:
    """What the manifest says: CSV in UTF-8, or Parquet by its ending.

    Known columns are ``file`` (relative to the image folder), ``label`` or ``labels``, ``group``, ``asset_id``,
    ``inspection_id``, ``element``, ``position_m``, ``clock``, ``captured_at``, ``latitude``, ``longitude``, ``split``
    (``train`` or ``test``, instead of dealing it out) and ``tile_x``, ``tile_y``, ``tile_width``, ``tile_height``
    (pixels of the upright picture: this box of it, and not the whole); others are ignored. A video, or a tar file's
    member (``shard.tar/member.jpg``), is named like any file; a member by a name that is a picture's.

    Raises:
        InputError: not such a table, a value that cannot be understood, or a file, or a box of it, that is named twice.
    """
    if where.lower().endswith(".parquet"):
        try:
            rows = table_from_bytes(data).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{where}: not a Parquet table ({' '.join(str(error).split())[:120]}).") from error
    else:
        try:
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8. Save it as CSV in UTF-8.") from error
        except csv.Error as error:
            raise InputError(f"{where}: not a CSV file ({error}).") from error
    if not rows or _FILE_COLUMN not in rows[0]:
        raise InputError(f"{where}: it names no files. Wanted is a column `file`, with paths relative to images.")
    found: Manifest = {}
    boxes: set[tuple[str, Tile | None]] = set()
    for number, row in enumerate(rows, 1):
        file = str(row.pop(_FILE_COLUMN) or "").removeprefix("./")
        try:
            said = _parse_row({key: value for key, value in row.items() if isinstance(key, str)})
        except ValueError as error:
            raise InputError(f"{where}, row {number} ({file}): {error}. Mend it, then run again.") from error
        # A whole picture beside boxes of it would be seen twice.
        is_known = bool({(file, said.get("tile")), (file, None)} & boxes) or ("tile" not in said and file in found)
        if not file or is_known:
            what = f"{file!r} is named twice" if file else "a row without a file"
            raise InputError(f"{where}, row {number}: {what}. Mend it, then run again.")
        boxes.add((file, said.get("tile")))
        found.setdefault(file, []).append(said)
    return found


def _parse_row(row: Mapping[str, Any]) -> Annotations:
    said = parse_annotations(row)
    box = [row.get(name) for name in _BOX_COLUMNS]
    if any(value not in (None, "") for value in box):
        try:
            x, y, width, height = (int(str(value)) for value in box)
        except ValueError:
            raise ValueError(f"the box {box} is no four whole numbers") from None
        if min(x, y) < 0 or min(width, height) < 1:
            raise ValueError(f"the box {box} is none: x and y from 0, width and height from 1")
        said["tile"] = Tile(x, y, width, height)
    if (split := row.get("split")) not in (None, ""):
        if split not in _SPLITS:
            raise ValueError(f"split {split!r} is neither train nor test")
        said["split"] = split
    return said


def choose_files(listed: Iterable[ListedFile], manifest: Manifest, where: str) -> list[ListedFile]:
    """The listed files that the manifest names, and a row for each that it names and that is not there.

    Raises:
        InputError: not one of its files is there, so this is another folder's manifest.
    """
    there = {file.file: file for file in listed}
    holders = {name: _holder(name, there) for name in manifest}  # a file, or the tar file that a member is in
    chosen = [there[name] for name in sorted({holder for holder in holders.values() if holder is not None})]
    missing = [name for name, holder in holders.items() if holder is None]
    if manifest and not chosen:
        raise InputError(
            f"{where}: none of its {len(manifest)} files is in the image folder ({next(iter(manifest))!r}, …). Names "
            "are paths relative to that folder."
        )
    lost = [ListedFile(name, None, None, "vanished", NOT_THERE) for name in missing]
    return sorted(chosen + lost, key=lambda file: file.file)


def _holder(name: str, there: dict[str, ListedFile]) -> str | None:
    if name in there:
        return name
    slashes = (i for i, letter in enumerate(name) if letter == "/")
    return next((name[:i] for i in slashes if name[:i] in there and there[name[:i]].is_tar), None)

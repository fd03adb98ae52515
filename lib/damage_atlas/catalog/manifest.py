"""A manifest: a table that says which files count, and what they show."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

import pyarrow as pa

from damage_atlas.catalog.annotations import Annotations, parse_annotations
from damage_atlas.catalog.listing import ListedFile
from damage_atlas.errors import InputError
from damage_atlas.store.runs import table_from_bytes

_FILE_COLUMN = "file"
NOT_THERE = "named in the manifest and not there"


def read_manifest(data: bytes, where: str) -> dict[str, Annotations]:
    """File -> what the manifest says of it: CSV in UTF-8, or Parquet by its ending.

    Known columns are ``file`` (relative to the image folder), ``label`` or ``labels``, ``group``, ``asset_id``,
    ``inspection_id``, ``element``, ``position_m``, ``clock``, ``captured_at``, ``latitude``, ``longitude``; others
    are ignored. A video, or a tar file's member (``shard.tar/member.jpg``), is named like any file.

    Raises:
        InputError: not such a table, a value that cannot be understood, or a file that is named twice.
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
    found: dict[str, Annotations] = {}
    for number, row in enumerate(rows, 1):
        file = str(row.pop(_FILE_COLUMN) or "").removeprefix("./")
        if not file or file in found:
            what = f"{file!r} is named twice" if file else "a row without a file"
            raise InputError(f"{where}, row {number}: {what}. Mend it, then run again.")
        try:
            found[file] = parse_annotations({key: value for key, value in row.items() if isinstance(key, str)})
        except ValueError as error:
            raise InputError(f"{where}, row {number} ({file}): {error}. Mend it, then run again.") from error
    return found


def choose_files(listed: Iterable[ListedFile], manifest: dict[str, Annotations], where: str) -> list[ListedFile]:
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

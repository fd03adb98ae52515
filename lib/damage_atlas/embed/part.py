"""A part of vectors as an object that proves itself: later runs take it as it is, so it carries its own digest."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa

from damage_atlas.errors import ContractError
from damage_atlas.store.runs import table_bytes, table_from_bytes

Failures = list[dict[str, str]]  # image_id, reason, detail


def part_bytes(table: pa.Table, failed: Failures) -> bytes:
    """The part as Parquet; its metadata hold the images that failed, and a digest of the rows."""
    return table_bytes(table.replace_schema_metadata({"failed": json.dumps(failed), "rows_sha256": _digest(table)}))


def read_part(data: bytes, where: str) -> tuple[pa.Table, Failures]:
    """The rows of a part, and the images that failed.

    Raises:
        ContractError: the rows are not those that were written.
    """
    try:
        table = table_from_bytes(data)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        is_whole = metadata["rows_sha256"] == _digest(table)
        failed: Failures = json.loads(metadata["failed"])
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise ContractError(f"{where} is damaged: not a part of vectors. {_REMEDY}") from error
    if not is_whole:
        raise ContractError(f"{where} is damaged: its vectors are not those that were written. {_REMEDY}")
    return table, failed


_REMEDY = "Restore it from a backup, or delete it: the next run then makes it again."


def _digest(table: pa.Table) -> str:
    ids = "\n".join(table["image_id"].to_pylist()).encode()
    vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).tobytes()
    return hashlib.sha256(len(ids).to_bytes(8, "big") + ids + vectors).hexdigest()

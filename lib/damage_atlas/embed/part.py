"""A part of vectors as an object that proves itself: later runs take it as it is, so it carries its own digest."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from damage_atlas.errors import ContractError
from damage_atlas.store.runs import table_bytes, table_from_bytes


def part_name(ids: list[str]) -> str:
    """The name of the part that holds these images, in this order."""
    return f"vectors-{hashlib.sha256(chr(10).join(ids).encode()).hexdigest()[:32]}.parquet"


def part_bytes(table: pa.Table) -> bytes:
    """The part as Parquet, with a digest of its rows in its metadata."""
    return table_bytes(table.replace_schema_metadata({"rows_sha256": _digest(table)}))


def read_part(data: bytes, where: str) -> pa.Table:
    """The rows of a part.

    Raises:
        ContractError: the rows are not those that were written.
    """
    try:
        table = table_from_bytes(data)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        is_whole = metadata["rows_sha256"] == _digest(table)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise ContractError(f"{where} is damaged: not a part of vectors. {_REMEDY}") from error
    if not is_whole:
        raise ContractError(f"{where} is damaged: its vectors are not those that were written. {_REMEDY}")
    return table


_REMEDY = "Restore it from a backup, or delete it: the next run then makes it again."


def _digest(table: pa.Table) -> str:
    ids = "\n".join(table["image_id"].to_pylist()).encode()
    vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).tobytes()
    return hashlib.sha256(len(ids).to_bytes(8, "big") + ids + vectors).hexdigest()

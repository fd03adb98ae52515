"""What earlier runs have found out about files: immutable parts beside the archive, so that only new files are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.catalog.listing import ListedFile
from damage_atlas.contracts import FILES
from damage_atlas.decoding.facts import Sampling
from damage_atlas.decoding.faults import PASSING_REASONS
from damage_atlas.errors import ContractError
from damage_atlas.images import Limits
from damage_atlas.parts import read_ahead
from damage_atlas.store import Store
from damage_atlas.store.objects import sha256
from damage_atlas.store.runs import table_bytes, table_from_bytes

# Raise it when the same bytes would be judged otherwise: then every file is looked at again.
_JUDGEMENT: Final = 2


def known_folder(archive: str, images_root: str, limits: Limits, sampling: Sampling) -> str:
    """Where facts about the files of one image folder are kept, for one way of judging them."""
    way = [_JUDGEMENT, images_root, limits.min_side, limits.max_pixels, limits.decode_limit_s, asdict(sampling)]
    return f"archives/{archive}/files/{hashlib.sha256(json.dumps(way).encode()).hexdigest()[:16]}"


def write_known(store: Store, folder: str, table: pa.Table) -> str:
    """Keep a part (columns as in ``contracts.FILES``); its name sorts by time and holds the digest of its bytes."""
    data = table_bytes(table)
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    key = f"{folder}/{moment}-{sha256(data)[:32]}.parquet"
    store.create_same(key, data)
    return key


def read_known(store: Store, folder: str, files: Iterable[ListedFile], retry_quarantined: bool = False) -> pa.Table:
    """Facts about those of ``files`` that are known as they are now; of several, the newest.

    Args:
        retry_quarantined: leave out what could not be used.

    Raises:
        ContractError: a part is damaged.
    """
    wanted = {(file.file, file.fingerprint or "") for file in files}
    settled: set[tuple[str, str]] = set()
    tables: list[pa.Table] = []
    keys = sorted((item.key for item in store.list(folder)), reverse=True)
    for table in read_ahead(lambda key: read_part(store, key), keys):
        units = list(zip(table["listed"].to_pylist(), table["fingerprint"].to_pylist(), strict=True))
        new = (set(units) & wanted) - settled
        settled |= new
        tables.append(table.filter(pa.array([unit in new for unit in units], pa.bool_())))
    known = pa.concat_tables([FILES.empty_table(), *tables])
    again = known.filter(
        pc.is_valid(known["reason"])
        if retry_quarantined
        else pc.is_in(known["reason"], pa.array(sorted(PASSING_REASONS)))
    )
    return known.filter(pc.invert(pc.is_in(known["listed"], again["listed"].combine_chunks())))


def read_part(store: Store, key: str) -> pa.Table:
    """One part; raises ContractError where it is damaged."""
    data = store.read(key)
    try:
        table = table_from_bytes(data)
    except (pa.ArrowException, OSError) as error:
        table, why = None, error
    else:
        why = None
    if table is None or sha256(data)[:32] not in key or not table.schema.equals(FILES):
        raise ContractError(
            f"{store.uri(key)} is damaged: not what was written. Restore it from a backup, or delete it: its files are "
            "then looked at again."
        ) from why
    return table

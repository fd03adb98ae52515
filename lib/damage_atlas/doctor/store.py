"""What the store lets us do, tried with an object of our own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from damage_atlas.doctor.findings import Finding
from damage_atlas.doctor.http import Place, Silent, ask
from damage_atlas.errors import ObjectExistsError, StoreError
from damage_atlas.store import Store

_WRITERS = 8  # that try to create the same object at once
_FREE_BYTES = 2 * 1024**3


def check_store(root: str | None, skews: dict[str, float | None]) -> Iterator[Finding]:
    """Whether the store lets us create, read, list and delete, and whether put-if-absent has exactly one winner."""
    if not root:
        yield Finding("store", "skipped", "no store given; --store or DAMAGE_ATLAS_STORE names one")
        return
    store = Store(root)
    if store.endpoint is not None:
        try:
            # Any answer tells the time, also a refusal.
            skews["the S3 server"] = ask(Place(store.endpoint), "/").skew_s
        except Silent as error:
            yield Finding("store", "bad", f"the S3 server at {store.endpoint} does not answer ({error}).",
                          "Check AWS_ENDPOINT_URL_S3, and whether the server is up.")  # fmt: skip
            return
    if store.folder is not None:
        if not store.folder.is_dir():
            yield Finding("store", "bad", f"the folder {store.folder} is not there.", "Create it, or mount it.")
            return
        if (free := shutil.disk_usage(store.folder).free) < _FREE_BYTES:
            yield Finding("store", "bad", f"{store.root}: {free / 1e9:.1f} GB are free.", "Make room.")
    key = f"checks/doctor-{uuid.uuid4().hex}"
    try:
        yield from _probe(store, key)
    except StoreError as error:
        yield Finding("store", "bad", error.message, "Correct address, credentials or permissions; see the message.")


def _probe(store: Store, key: str) -> Iterator[Finding]:
    def create(writer: int) -> bytes | None:
        data = f"written by {writer}".encode()
        try:
            store.create(key, data)
        except ObjectExistsError:
            return None
        return data

    with ThreadPoolExecutor(_WRITERS) as pool:
        winners = [data for data in pool.map(create, range(_WRITERS)) if data is not None]
    try:
        # None is told that it has won where a server's answer was lost and the put was repeated.
        if winners in ([], [store.read(key)]) and create(_WRITERS) is None:
            yield Finding("store", "ok", f"{store.root}: of {_WRITERS} that create one object, one succeeds")
        else:
            yield Finding(
                "store",
                "bad",
                f"{store.root} does not keep put-if-absent: {len(winners)} of {_WRITERS} that created one object were "
                "told that they had. Two runs could both publish.",
                "Use an S3 server that honours `If-None-Match: *`, or a file system with hard links.",
            )
        if key in [item.key for item in store.list("checks")]:
            yield Finding("store", "ok", f"{store.root}: what is created can be read and is listed")
        else:
            yield Finding("store", "bad", f"{store.root}: an object that was created is not listed.",
                          "Allow listing (s3:ListBucket), and use a store that lists what it has.")  # fmt: skip
    finally:
        store.delete(key)
    if store.exists(key):
        yield Finding("store", "bad", f"{store.root}: {key} stayed after it was deleted.",
                      "Allow deletion (s3:DeleteObject): checkpoints and `damage-atlas forget` need it.")  # fmt: skip
    else:
        yield Finding("store", "ok", f"{store.root}: what is deleted is gone")

"""Retention: run folders that were never published are taken away, in two passes that lie at least a day apart.

The first pass marks a run with ``retired.json``; from then on nobody goes on with it and nobody can publish it. The
second deletes it. So a run that is being published at the very moment of a pass is never half deleted: its publisher
looks for the mark, and a pass looks for version records, and between them lies a day. What runs share (vectors, facts
about files, models) is no part of a run folder and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel

from damage_atlas.errors import AtlasError, InputError, ObjectExistsError, ObjectNotFoundError
from damage_atlas.store.objects import Store
from damage_atlas.store.runs import RETIRED, Run, read_document, read_run_spec
from damage_atlas.store.versions import list_versions, read_version

_BETWEEN = timedelta(days=1)
_STARTED = re.compile(r"(\d{8}T\d{6})Z")  # how run ids begin unless a person names the run


class Retirement(BaseModel):
    """``retired.json``: when the run was marked."""

    at: datetime


@dataclass(frozen=True)
class Pruned:
    """What a pass did, by run id.

    Attributes:
        undated: runs that stay because nothing says how old they are: nothing in them is sealed, and their id is a
            person's.
    """

    retired: tuple[str, ...]
    removed: tuple[str, ...]
    undated: tuple[str, ...]
    objects: int  # deleted


def prune(
    store: Store, archive: str, keep_days: float, *, now: datetime | None = None, dry_run: bool = False
) -> Pruned:
    """One pass over an archive's unpublished runs; a run is as old as the newest stage it has sealed.

    Args:
        keep_days: younger ones stay.
        dry_run: say what would be done.

    Raises:
        InputError: no name of an archive, or fewer than one day.
        StoreError: the store did not answer, or refused; the next pass goes on.
    """
    if not keep_days >= 1:  # nor a NaN
        raise InputError(f"runs are kept for at least one day, not {keep_days}: one may be at work.")
    now = now or datetime.now(UTC)
    published = {read_version(store, archive, number).run_id for number in list_versions(store, archive)}
    folder = f"archives/{archive}/runs"
    retired: list[str] = []
    removed: list[str] = []
    undated: list[str] = []
    objects = 0
    for run_id in store.list_folders(folder):
        key = f"{folder}/{run_id}"
        if run_id in published:
            continue
        marked = _marked_at(store, key)
        if marked is not None:
            if now - marked >= _BETWEEN:
                objects += sum(1 for _ in (_remains(store, key) if dry_run else _remove(store, key)))
                removed.append(run_id)
            continue
        age = _age(store, key, run_id, now)
        if age is None:
            undated.append(run_id)
        elif age >= timedelta(days=keep_days):
            retired.append(run_id)
            if not dry_run:
                with suppress(ObjectExistsError):  # another pass at the same time
                    store.create(f"{key}/{RETIRED}", Retirement(at=now).model_dump_json().encode())
    return Pruned(tuple(retired), tuple(removed), tuple(undated), objects)


def _marked_at(store: Store, key: str) -> datetime | None:
    try:
        return read_document(store, f"{key}/{RETIRED}", Retirement).at
    except ObjectNotFoundError:
        return None


def _age(store: Store, key: str, run_id: str, now: datetime) -> timedelta | None:
    """Time since the newest seal; before the first one, since the start that the run's id names."""
    sealed = []
    try:
        run = Run(store, key, read_run_spec(store, key))
        stages = [run.stage(name).sealed for name in run.spec.stages]
        sealed = [artifact.sealed_at for artifact in stages if artifact is not None]
    except AtlasError as error:
        if error.retryable:
            raise
        # No run.yaml, or a damaged one: its id may still tell.
    if sealed:
        return now - max(sealed)
    started = _STARTED.match(run_id)
    if started is None:
        return None
    try:
        return now - datetime.strptime(started[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def _remains(store: Store, key: str) -> list[str]:
    """What is to be deleted, in order: the mark last, so that the next pass goes on where this one was interrupted."""
    found = [item.key for item in store.list(key)]
    last = [f"{key}/run.yaml", f"{key}/{RETIRED}"]
    return [each for each in found if each not in last] + [each for each in last if each in found]


def _remove(store: Store, key: str) -> Iterator[str]:
    for each in _remains(store, key):
        store.delete(each)
        yield each

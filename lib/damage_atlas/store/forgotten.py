"""Tombstones: what was forgotten, by numbered records, so that no later run brings it back."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field

from damage_atlas.contracts import Tombstone
from damage_atlas.errors import InputError, ObjectExistsError
from damage_atlas.store.objects import Store
from damage_atlas.store.runs import Run, read_document
from damage_atlas.store.versions import record_numbers


@dataclass(frozen=True)
class Forgotten:
    """All tombstones of an archive together."""

    tombstones: dict[int, Tombstone] = field(default_factory=dict)

    @property
    def sha256(self) -> set[str]:
        """Digests of whole files."""
        return {digest for tombstone in self.tombstones.values() for digest in tombstone.sha256}

    @property
    def files(self) -> set[str]:
        """Names of files, as they were then."""
        return {file for tombstone in self.tombstones.values() for file in tombstone.files}

    @property
    def image_ids(self) -> set[str]:
        """Images."""
        return {image_id for tombstone in self.tombstones.values() for image_id in tombstone.image_ids}

    def find(self, uri: str) -> Tombstone | None:
        """The newest tombstone that was asked for by this name, or that holds this file or image."""
        for number in sorted(self.tombstones, reverse=True):
            tombstone = self.tombstones[number]
            if uri == tombstone.asked_for or uri in tombstone.files or uri in tombstone.image_ids:
                return tombstone
        return None


def read_forgotten(store: Store, archive: str) -> Forgotten:
    """The archive's tombstones; ContractError where one is damaged."""
    folder = f"archives/{archive}/forgotten"
    numbers = record_numbers(store, folder)
    return Forgotten({number: read_document(store, f"{folder}/{number:08d}.json", Tombstone) for number in numbers})


def refuse_forgotten(run: Run) -> set[str]:
    """Let no stage of a run that had begun before show an image again; the images that were forgotten.

    Raises:
        InputError: the run's catalog holds an image that was forgotten since.
    """
    gone = read_forgotten(run.store, run.spec.archive).image_ids
    if gone:
        images = run.read_table("catalog", "observations.parquet", ["image_id"])["image_id"]
        if not gone.isdisjoint(images.to_pylist()):
            raise InputError(f"{run.uri}: images were forgotten since its catalog was made. Start a new run.")
    return gone


def bury(store: Store, archive: str, tombstone: Tombstone) -> int:
    """Write the tombstone under the next number, unless one says the same; return its number."""
    while True:
        known = read_forgotten(store, archive).tombstones
        for number, other in known.items():
            if (other.sha256, other.image_ids) == (tombstone.sha256, tombstone.image_ids):
                return number
        number = max(known, default=0) + 1
        key = f"archives/{archive}/forgotten/{number:08d}.json"
        try:
            store.create(key, tombstone.model_dump_json(indent=1).encode())
            return number
        except ObjectExistsError:
            continue  # another took the number


def note_deletion(store: Store, archive: str, number: int, deleted: list[str]) -> None:
    """Note what is deleted for a tombstone: readers of older versions then say why it is gone."""
    if deleted:
        data = json.dumps({"deleted": deleted}, indent=1).encode()
        for part in range(1, 1000):  # the command may have been repeated
            with suppress(ObjectExistsError):
                store.create(f"archives/{archive}/forgotten/{number:08d}-deleted-{part:03d}.json", data)
                return


def deleted_objects(store: Store, archive: str) -> dict[str, int]:
    """Key of each object that was deleted -> the tombstone's number."""
    found: dict[str, int] = {}
    for item in store.list(f"archives/{archive}/forgotten"):
        name = item.key.rpartition("/")[2]
        if "-deleted-" in name:
            found |= dict.fromkeys(json.loads(store.read(item.key))["deleted"], int(name[:8]))
    return found

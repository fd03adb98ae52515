"""What people say of clusters: names, notes, severities. Numbered records that stick to the id, never edited."""

from __future__ import annotations

from damage_atlas.contracts import Remark
from damage_atlas.errors import InputError, ObjectExistsError
from damage_atlas.store.objects import Store
from damage_atlas.store.runs import read_document
from damage_atlas.store.versions import read_version, record_numbers


def add_remark(store: Store, archive: str, remark: Remark) -> int:
    """Write the remark under the next number and return it.

    Raises:
        InputError: the archive has never had such a cluster, or the remark says nothing.
    """
    given = read_version(store, archive).next_cluster_id
    if not 0 < remark.cluster_id < given:
        raise InputError(f"{archive} has had no cluster {remark.cluster_id}; ids from 1 to {given - 1} were given.")
    if remark.name is None and remark.note is None and remark.severity is None:
        raise InputError("a remark needs a name, a note or a severity.")
    folder = f"archives/{archive}/remarks"
    while True:
        number = (record_numbers(store, folder) or [0])[-1] + 1
        try:
            store.create(f"{folder}/{number:08d}.json", remark.model_dump_json(indent=1).encode())
            return number
        except ObjectExistsError:
            continue  # another took the number


def read_remarks(store: Store, archive: str) -> list[Remark]:
    """All remarks of an archive, oldest first; ContractError where one is damaged."""
    folder = f"archives/{archive}/remarks"
    return [read_document(store, f"{folder}/{n:08d}.json", Remark) for n in record_numbers(store, folder)]

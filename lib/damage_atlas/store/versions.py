"""Version records and model promotions: numbered, put if absent, never edited. The highest number is current."""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel

from damage_atlas.contracts import SCHEMA_VERSION, Ledger, ModelCard, Promotion, VersionRecord
from damage_atlas.errors import ContractError, InputError, ObjectExistsError, ObjectNotFoundError, PublishConflictError
from damage_atlas.spec import check_name
from damage_atlas.store.objects import Store
from damage_atlas.store.runs import Run, read_document, read_output, table_from_bytes


def list_versions(store: Store, archive: str) -> list[int]:
    """Numbers of the archive's versions, ascending.

    Raises:
        InputError: no name of an archive.
    """
    try:
        check_name(archive)
    except ValueError as error:
        raise InputError(f"archive {error}.") from error
    return record_numbers(store, f"archives/{archive}/versions")


def current_version(store: Store, archive: str) -> int | None:
    """The highest version number, or None before the first publication."""
    numbers = list_versions(store, archive)
    return numbers[-1] if numbers else None


def read_version(store: Store, archive: str, version: int | None = None) -> VersionRecord:
    """One version record; the current one by default.

    Raises:
        InputError: there is no such version.
    """
    number = current_version(store, archive) if version is None else version
    if number is None:
        raise InputError(f"archive {archive} has no published version in {store.root}. Run it first.")
    try:
        return read_document(store, f"archives/{archive}/versions/{number:08d}.json", VersionRecord)
    except ObjectNotFoundError:
        known = list_versions(store, archive)
        raise InputError(f"archive {archive} has no version {number}; it has {known or 'none'}.") from None


def publish_version(store: Store, record: VersionRecord) -> VersionRecord:
    """Create the version record.

    Raises:
        PublishConflictError: that number is taken by another run.
    """
    key = f"archives/{record.archive}/versions/{record.version:08d}.json"
    try:
        store.create(key, record.model_dump_json(indent=1).encode())
    except ObjectExistsError:
        winner = read_version(store, record.archive, record.version)
        if winner.run_id == record.run_id and winner.action == record.action:
            return winner
        raise PublishConflictError(
            f"version {record.version} of {record.archive} was published by run {winner.run_id} meanwhile. "
            "Nothing of this run is visible; start a new run on top of that version."
        ) from None
    return record


def run_ledger(run: Run) -> Ledger:
    """The run's ledger, as the embed stage sealed it."""
    return Ledger.model_validate(run.artifact("embed").facts["ledger"])


def run_model(run: Run) -> ModelCard:
    """The card of the model version that the run's vectors were made with, as the embed stage sealed it."""
    return resolve_model(run.store, run.artifact("embed").facts["model"])


def promote_model(store: Store, model: str, version: str, reason: str) -> Promotion:
    """Make ``version`` the model's current one, by the next numbered record."""
    promotion = Promotion(model=model, version=version, reason=reason)
    while True:
        number = (record_numbers(store, f"models/{model}/promotions") or [0])[-1] + 1
        try:
            store.create(f"models/{model}/promotions/{number:08d}.json", _json(promotion))
            return promotion
        except ObjectExistsError:
            continue  # another promotion took the number


def resolve_model(store: Store, reference: str) -> ModelCard:
    """The card of ``NAME@VERSION``, or of the promoted version of ``NAME``.

    Raises:
        InputError: no such model or version, or nothing was promoted yet.
    """
    name, _, version = reference.partition("@")
    try:
        check_name(name)
    except ValueError as error:
        raise InputError(f"model {error}.") from error
    if not version:
        numbers = record_numbers(store, f"models/{name}/promotions")
        if not numbers:
            raise InputError(f"model {name} has no promoted version in {store.root}. Train it first.")
        version = read_document(store, f"models/{name}/promotions/{numbers[-1]:08d}.json", Promotion).version
    return load_model_card(store, name, version)


def load_model_card(store: Store, model: str, version: str) -> ModelCard:
    """``model.json`` of one version.

    Raises:
        InputError: that version is not complete.
        ContractError: its card cannot be read, or is of another schema version.
    """
    key = f"models/{model}/{version}/model.json"
    try:
        card = read_document(store, key, ModelCard)
    except ObjectNotFoundError:
        raise InputError(f"model {model}@{version} is not in {store.root}, or its training did not finish.") from None
    if card.schema_version != SCHEMA_VERSION:
        raise ContractError(
            f"{store.uri(key)} has schema version {card.schema_version}; this program reads {SCHEMA_VERSION}. "
            "Use the release that wrote it, or train again."
        )
    return card


def read_reference(store: Store, card: ModelCard) -> pa.Table:
    """Vectors and labels of the images a model was trained on."""
    return table_from_bytes(read_output(store, card.reference))


def record_numbers(store: Store, prefix: str) -> list[int]:
    """Numbers of the records below ``prefix``, ascending; what is named otherwise is none."""
    names = (item.key.rsplit("/", 1)[1].removesuffix(".json") for item in store.list(prefix))
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def _json(document: BaseModel) -> bytes:
    return document.model_dump_json(indent=1).encode()

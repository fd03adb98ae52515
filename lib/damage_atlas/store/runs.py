"""A run folder: ``run.yaml`` (frozen), then one folder per stage whose ``artifact.json`` is written last.

Attempt 1 of a stage writes straight into the stage's folder, attempt n into ``attempt-00n/`` below it, so that a
worker that was replaced cannot touch its successor's objects; the artifact names the objects that count.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from damage_atlas.contracts import SCHEMA_VERSION, STAGES, TABLES, Artifact, Output
from damage_atlas.errors import ContractError, ObjectExistsError, ObjectNotFoundError, SpecError
from damage_atlas.spec import RunSpec, changed_keys, check_name, dump_yaml, parse_document
from damage_atlas.store.objects import Store, absolute, sha256

D = TypeVar("D", bound=BaseModel)

RETIRED = "retired.json"  # in the folder of a run that is to be deleted (see retention.py)

# Settled when a run is first opened; a second opening takes what is written.
_RESOLVED = ("model_version", "previous_version")


def code_version() -> str:
    """Version of the installed distribution."""
    try:
        return importlib.metadata.version("damage-atlas")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def new_run_id() -> str:
    """A run id that sorts by time: ``20260301T020000Z``."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def run_key(spec: RunSpec) -> str:
    """Where a run lies below the store's root; a training run is the folder of the model version it makes."""
    if spec.kind == "train":
        return f"models/{spec.model}/{spec.run_id}"
    return f"archives/{spec.archive}/runs/{spec.run_id}"


def open_run(store: Store, spec: RunSpec, attempt: int = 1) -> Run:
    """Create the run that ``spec`` describes, or go on with it when it is there already.

    Raises:
        SpecError: the run was started with other settings; the message names them.
    """
    key = run_key(spec)
    try:
        store.create(f"{key}/run.yaml", dump_yaml(spec).encode())
    except ObjectExistsError:
        found = read_run_spec(store, key)
        wanted = spec.model_copy(update={name: getattr(found, name) for name in _RESOLVED})
        if changed := changed_keys(found, wanted):
            raise SpecError(
                f"run {spec.run_id} was started with other settings ({', '.join(changed)}). "
                "Start a new run, or give the settings it has in its run.yaml."
            ) from None
        spec = found
    return Run(store, key, spec, attempt)


@dataclass(frozen=True)
class Run:
    """A run folder in a store.

    Attributes:
        key: the folder, below the store's root.
        attempt: which attempt at a stage this process is; part of what it writes.
    """

    store: Store
    key: str
    spec: RunSpec
    attempt: int = 1

    @classmethod
    def load(cls, run_uri: str, attempt: int = 1) -> Run:
        """Open the run at ``run_uri``.

        Raises:
            SpecError: not the address of a run, or its ``run.yaml`` is not valid.
        """
        root, key = _split_run_uri(run_uri)
        store = Store(root)
        try:
            return cls(store, key, read_run_spec(store, key), attempt)
        except ObjectNotFoundError as error:
            raise SpecError(f"{run_uri}: no run.yaml there, so this is not a run. Check the address.") from error

    @classmethod
    def within(cls, store: Store, run_uri: str) -> Run:
        """Open the run at ``run_uri``, an address that came from elsewhere: it has to be a run of this very store.

        Raises:
            SpecError: it is not.
        """
        root, key = _split_run_uri(run_uri)
        try:
            named = root == store.root and [check_name(part) for part in key.split("/")]
        except ValueError:
            named = False
        if not named:
            raise SpecError(f"{run_uri} is not a run of {store.root}. Check the address, and which store is set.")
        run = cls.load(run_uri)
        if run_key(run.spec) != key:
            raise SpecError(f"{run_uri}: its run.yaml is that of another run, {run.spec.run_id}. Check the address.")
        return run

    @property
    def uri(self) -> str:
        """The run's address."""
        return self.store.uri(self.key)

    def refuse(self, why: str) -> None:
        """Note that this run cannot be completed with the images it has found: the same command starts a new one."""
        with suppress(ObjectExistsError):
            self.store.create(f"{self.key}/refused.json", json.dumps({"why": why}).encode())

    @property
    def refused(self) -> bool:
        """Whether ``refuse`` was called, or the run is to be deleted."""
        return self.store.exists(f"{self.key}/refused.json") or self.retired

    @property
    def retired(self) -> bool:
        """Whether the run is to be deleted, because it was not published for long: nobody may publish it now."""
        return self.store.exists(f"{self.key}/{RETIRED}")

    def stage(self, name: str) -> Stage:
        """The folder of one stage."""
        if name not in STAGES:
            raise ContractError(f"{name} is not a stage; stages are {', '.join(STAGES)}.")
        return Stage(self, name)

    def artifact(self, stage: str) -> Artifact:
        """The sealed artifact of ``stage``.

        Raises:
            ContractError: the stage is not complete.
        """
        artifact = self.stage(stage).sealed
        if artifact is None:
            raise ContractError(f"{self.uri}: stage {stage} is not complete. Run `damage-atlas {stage} {self.uri}`.")
        return artifact

    def read(self, stage: str, name: str) -> bytes:
        """An output of a sealed stage, checked against its digest."""
        artifact = self.artifact(stage)
        if name not in artifact.outputs:
            raise ContractError(f"{self.uri}: stage {stage} has no output {name}.")
        return read_output(self.store, artifact.outputs[name])

    def read_table(self, stage: str, name: str, columns: list[str] | None = None) -> pa.Table:
        """A table of a sealed stage, or some of its columns, checked against its digest."""
        return table_from_bytes(self.read(stage, name), columns)

    def previous(self) -> Run | None:
        """The run that was the archive's current version when this one was opened."""
        from damage_atlas.store.versions import read_version

        if self.spec.previous_version is None:
            return None
        record = read_version(self.store, self.spec.archive, self.spec.previous_version)
        return Run.load(self.store.uri(record.run_key))


def read_output(store: Store, output: Output) -> bytes:
    """The bytes of a sealed object.

    Raises:
        ContractError: they are missing, or not what was sealed.
    """
    try:
        data = store.read(output.key)
    except ObjectNotFoundError as error:
        raise ContractError(f"{store.uri(output.key)} was sealed and is gone. Restore it from a backup.") from error
    if sha256(data) != output.sha256:
        raise ContractError(
            f"{store.uri(output.key)} is not what was sealed (SHA-256 differs). Restore it from a backup."
        )
    return data


def write_output(store: Store, key: str, data: bytes, rows: int | None = None) -> Output:
    """Create the object, unless the very same bytes are there already, and describe it."""
    store.create_same(key, data)
    return Output(key=key, sha256=sha256(data), size_bytes=len(data), rows=rows)


def table_from_bytes(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table of a Parquet object.

    On this thread alone: a thread of Arrow's that still holds ``data`` when the interpreter ends aborts the process.
    """
    return pq.read_table(io.BytesIO(data), columns=columns, use_threads=False, pre_buffer=False)


def read_document(store: Store, key: str, kind: type[D]) -> D:
    """A JSON record of the store.

    Raises:
        ObjectNotFoundError: nothing has this name.
        ContractError: what is there is not such a record.
    """
    try:
        return kind.model_validate_json(store.read(key))
    except ValidationError as error:
        raise ContractError(f"{store.uri(key)} is damaged: not a {kind.__name__}. Restore it from a backup.") from error


def read_run_spec(store: Store, key: str) -> RunSpec:
    """``run.yaml`` of the run at ``key``.

    Raises:
        ObjectNotFoundError: there is no run.
        ContractError: its run.yaml is damaged.
        SpecError: its settings are not valid.
    """
    where = store.uri(f"{key}/run.yaml")
    try:
        text = store.read(f"{key}/run.yaml").decode()
    except UnicodeDecodeError as error:
        raise ContractError(f"{where} is damaged: not text. Restore it from a backup.") from error
    return parse_document(RunSpec, text, where)


def table_bytes(table: pa.Table) -> bytes:
    """The table as Parquet; the same table gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


@dataclass
class Stage:
    """One stage's folder: objects are written first, ``seal`` last."""

    run: Run
    name: str
    _outputs: dict[str, Output] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    @cached_property
    def folder(self) -> str:
        """Where this attempt writes, below the store's root."""
        base = f"{self.run.key}/{self.name}"
        return base if self.run.attempt == 1 else f"{base}/attempt-{self.run.attempt:03d}"

    @property
    def outputs(self) -> dict[str, Output]:
        """What was written or adopted so far, by logical name."""
        return dict(self._outputs)

    @property
    def sealed(self) -> Artifact | None:
        """The artifact, when the stage is complete."""
        key = f"{self.run.key}/{self.name}/artifact.json"
        try:
            artifact = read_document(self.run.store, key, Artifact)
        except ObjectNotFoundError:
            return None
        if artifact.schema_version != SCHEMA_VERSION:
            raise ContractError(
                f"{self.run.store.uri(key)} has schema version {artifact.schema_version}; this program reads "
                f"{SCHEMA_VERSION}. Use the release that wrote it, or start a new run."
            )
        return artifact

    def next_attempt(self) -> int:
        """The attempt after those that have left something here: 1 for an untouched stage."""
        attempts = {0}
        for item in self.run.store.list(f"{self.run.key}/{self.name}"):
            part = item.key.removeprefix(f"{self.run.key}/{self.name}/").split("/")[0]
            if part not in ("plan.json", "plan"):
                number = re.fullmatch(r"attempt-(\d+)", part, re.ASCII)
                attempts.add(int(number[1]) if number else 1)
        return max(attempts) + 1

    def plan(self, document: dict[str, Any]) -> dict[str, Any]:
        """Store the stage's plan, or return the one that is stored: every attempt works by the same plan."""
        try:
            self.run.store.create(self._plan_key, json.dumps(document, indent=1).encode())
            return document
        except ObjectExistsError:
            stored = self.stored_plan()
            assert stored is not None
            return stored

    def stored_plan(self) -> dict[str, Any] | None:
        """The plan an earlier attempt has stored, or None."""
        try:
            stored: dict[str, Any] = json.loads(self.run.store.read(self._plan_key))
        except ObjectNotFoundError:
            return None
        return stored

    def write_beside_plan(self, name: str, data: bytes, rows: int | None = None) -> Output:
        """Write an object that the plan refers to: for all attempts, and no output of the stage."""
        return write_output(self.run.store, f"{self.run.key}/{self.name}/plan/{name}", data, rows)

    @property
    def _plan_key(self) -> str:
        return f"{self.run.key}/{self.name}/plan.json"

    def write(self, name: str, data: bytes, rows: int | None = None) -> Output:
        """Write an output of this stage; it counts once the stage is sealed."""
        key = f"{self.folder}/{name}"
        output = write_output(self.run.store, key, data, rows)
        self._outputs[name] = output
        return output

    def write_json(self, name: str, document: Any) -> Output:
        """Write a JSON output."""
        return self.write(name, json.dumps(document, indent=1, ensure_ascii=False, default=str).encode())

    def write_table(self, name: str, table: pa.Table) -> Output:
        """Write a Parquet output; its schema must be the contract's, where there is one."""
        contract = TABLES.get(f"{self.name}/{name}")
        if contract is not None and not table.schema.equals(contract):
            raise ContractError(f"{self.name}/{name}: columns differ from the contract; this is a defect of the stage.")
        return self.write(name, table_bytes(table), table.num_rows)

    def adopt(self, name: str, output: Output) -> None:
        """Make an object that was written elsewhere (by a worker, or shared by runs) an output of this stage."""
        self._outputs[name] = output

    def seal(self, inputs: tuple[str, ...], counts: dict[str, int], facts: dict[str, Any] | None = None) -> Artifact:
        """Write ``artifact.json``. Of several that try, the first wins and all return its artifact.

        Args:
            inputs: the stages that were read.
            counts: ``in``, ``out`` and ``failed``; refused unless in == out + failed.

        Raises:
            ContractError: the counts do not add up, or an input is not sealed.
        """
        if counts["in"] != counts["out"] + counts["failed"]:
            raise ContractError(
                f"{self.run.uri}: stage {self.name} lost rows ({counts}). Nothing was sealed; rerun it."
            )
        digests = {}
        for stage in inputs:
            self.run.artifact(stage)
            digests[stage] = self.run.store.digest(f"{self.run.key}/{stage}/artifact.json")
        artifact = Artifact(
            stage=self.name,
            run_id=self.run.spec.run_id,
            attempt=self.run.attempt,
            inputs=digests,
            outputs=dict(sorted(self._outputs.items())),
            code_version=code_version(),
            counts=counts,
            facts=facts or {},
            seconds=round(time.monotonic() - self._started, 3),
        )
        try:
            self.run.store.create(
                f"{self.run.key}/{self.name}/artifact.json", artifact.model_dump_json(indent=1).encode()
            )
        except ObjectExistsError:
            sealed = self.sealed
            assert sealed is not None
            return sealed
        return artifact


def _split_run_uri(run_uri: str) -> tuple[str, str]:
    trimmed = absolute(run_uri).rstrip("/")
    for marker, depth in (("/archives/", 3), ("/models/", 2)):
        root, found, rest = trimmed.rpartition(marker)
        if found and rest.count("/") + 1 == depth:
            return root, f"{marker.strip('/')}/{rest}"
    raise SpecError(f"{run_uri}: a run's address ends in archives/NAME/runs/ID or models/NAME/VERSION.")

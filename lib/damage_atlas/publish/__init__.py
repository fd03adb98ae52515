"""Publish: verify every digest of a sealed run, then make it the archive's current version by put-if-absent."""

from __future__ import annotations

from datetime import UTC, datetime

from damage_atlas.contracts import Artifact, Output, VersionRecord
from damage_atlas.errors import ContractError, ObjectNotFoundError, PublishConflictError
from damage_atlas.parts import MapParts, read_ahead
from damage_atlas.store import Run, current_version, publish_version, read_version
from damage_atlas.store.forgotten import deleted_objects
from damage_atlas.store.objects import sha256
from damage_atlas.store.versions import run_ledger

__all__ = ["publish_run", "rollback", "verify_run"]


def publish_run(run: Run, map_parts: MapParts = read_ahead) -> Artifact:
    """Publish the run as the version after the one it was built on.

    Raises:
        ContractError: a digest differs, an observation is pending, or a stage is not sealed.
        PublishConflictError: another run of the archive was published meanwhile.
    """
    stage = run.stage("publish")
    if sealed := stage.sealed:
        return sealed
    problems = verify_run(run, map_parts)
    if problems:
        raise ContractError(f"{run.uri}: not published: {problems[0]} ({len(problems)} problems in all).")
    ledger = run_ledger(run).check(run.uri)
    if ledger.pending:
        raise ContractError(f"{run.uri}: not published: {ledger.pending} observations are pending. Rerun embed.")
    if run.retired:
        raise ContractError(
            f"{run.uri}: not published: the run lay unpublished for so long that it is being deleted. Start a new one; "
            "vectors are reused."
        )
    number = (run.spec.previous_version or 0) + 1
    current = current_version(run.store, run.spec.archive)
    if (current or 0) >= number:
        record = read_version(run.store, run.spec.archive, number)
        if record.run_id != run.spec.run_id:
            raise PublishConflictError(
                f"version {number} of {run.spec.archive} was published by run {record.run_id} after this run began. "
                "Nothing of this run is visible; start a new run on top of that version."
            )
    stages = tuple(s for s in run.spec.stages if s != "publish")
    record = publish_version(
        run.store,
        VersionRecord(
            version=number,
            archive=run.spec.archive,
            run_id=run.spec.run_id,
            run_key=run.key,
            artifacts={s: run.store.digest(f"{run.key}/{s}/artifact.json") for s in stages},
            ledger=ledger,
            clusters=run.artifact("cluster").facts["clusters"],
            next_cluster_id=run.artifact("cluster").facts["next_cluster_id"],
        ),
    )
    return stage.seal(
        inputs=stages,
        counts={"in": 1, "out": 1, "failed": 0},
        facts={"version": record.version, "report": run.store.uri(run.artifact("report").outputs["index.html"].key)},
    )


def verify_run(run: Run, map_parts: MapParts = read_ahead) -> list[str]:
    """Re-hash all that the run's sealed stages wrote; one line for each thing that is not as sealed."""
    problems: list[str] = []
    outputs: dict[str, Output] = {}
    for name in run.spec.stages:
        if name == "publish":
            continue
        try:
            artifact = run.stage(name).sealed
        except ContractError as error:
            problems.append(error.message)
            continue
        if artifact is None:
            problems.append(f"stage {name} is not complete")
            continue
        for upstream, digest in artifact.inputs.items():
            if run.store.digest(f"{run.key}/{upstream}/artifact.json") != digest:
                problems.append(f"{upstream}/artifact.json is not the one that {name} has read")
        outputs |= {output.key: output for output in artifact.outputs.values()}
    checks = map_parts(_CheckOutput(run), list(outputs.values()))
    forgotten = deleted_objects(run.store, run.spec.archive)
    for output, problem in zip(outputs.values(), checks, strict=True):
        if problem and (number := forgotten.get(output.key)):
            problem = f"{problem}: an image in it was forgotten (forgotten/{number:08d}.json)"
        problems += [problem] if problem else []
    return problems


class _CheckOutput:
    def __init__(self, run: Run) -> None:
        self.store = run.store

    def __call__(self, output: Output) -> str | None:
        try:
            data = self.store.read(output.key)
        except ObjectNotFoundError:
            return f"{output.key} is gone"
        return None if sha256(data) == output.sha256 else f"{output.key} was changed"


def rollback(run: Run) -> VersionRecord:
    """Make an older run current again by a new version record that points at it."""
    problems = verify_run(run)
    if problems:
        raise ContractError(f"{run.uri}: not rolled back: {problems[0]} ({len(problems)} problems in all).")
    current = read_version(run.store, run.spec.archive)
    older = next(
        record
        for number in range(current.version, 0, -1)
        if (record := read_version(run.store, run.spec.archive, number)).run_id == run.spec.run_id
    )
    changes = {
        "version": current.version + 1,
        "action": "rollback",
        "next_cluster_id": current.next_cluster_id,
        "published_at": datetime.now(UTC),
    }
    return publish_version(run.store, older.model_copy(update=changes))

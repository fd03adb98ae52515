"""What the DAGs share: archive files, opening a run, and a stage as a Ray job. Imports neither ray nor torch."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import Asset, AssetAlias, BaseNotifier, BaseOperatorLink, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from airflow_ray_jobs import RayJobOperator
from damage_atlas.contracts import Alerts, RunKind
from damage_atlas.errors import AtlasError, InputError
from damage_atlas.spec import ArchiveSpec, parse_document, with_overrides
from damage_atlas.store import Run, Store, absolute, start_run

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

_REPOSITORY = Path(__file__).resolve().parent.parent

# Where archive files lie, what their relative folders are relative to, and where everything is stored.
ARCHIVES = Path(os.environ.get("DAMAGE_ATLAS_ARCHIVES", _REPOSITORY / "infra" / "archives"))
DATA = os.environ.get("DAMAGE_ATLAS_DATA", str(_REPOSITORY / "var"))
STORE = os.environ.get("DAMAGE_ATLAS_STORE", str(_REPOSITORY / "var" / "store"))

# Airflow's pool for the stages that use a GPU if Ray has one; it has to count deferred tasks, which these are.
GPU_POOL = os.environ.get("DAMAGE_ATLAS_GPU_POOL", "default_pool")
GPU_STAGES = frozenset({"train", "embed", "explain"})

DEFAULTS = {
    "owner": "inspection",
    "retries": 2,
    "retry_delay": timedelta(seconds=30),
    "execution_timeout": timedelta(hours=12),
}
# Longest a stage may take; a job beyond it is stopped and the try fails.
TIMEOUTS = {"train": timedelta(hours=12), "embed": timedelta(hours=12), "cluster": timedelta(hours=6)}
_TIMEOUT = timedelta(hours=2)


def archives() -> list[ArchiveSpec]:
    """The archive files, by name."""
    return [parse_document(ArchiveSpec, file.read_text(), file.name) for file in sorted(ARCHIVES.glob("*.yaml"))]


# What forms of trainings ask for.
ITERATIONS = Param(
    None,
    type=["integer", "null"],
    minimum=1,
    title="Iterations",
    description="Empty: as the archive's file says.",
)


def trainable_archive(description: str) -> Param:
    """The form's choice among archives that name labelled images."""
    names = [archive.archive for archive in archives() if archive.training_images]
    return Param(names[0] if names else "", type="string", enum=names or [""], title="Archive", description=description)


def model_asset(model: str) -> Asset:
    """A model's promoted version; each promotion is an event of it."""
    return Asset(name=f"model {model}", uri=f"damage-atlas://models/{model}")


def delivery_asset(archive: str) -> Asset:
    """An archive's deliveries; whoever brings one says so by an event, with its name as ``delivery``."""
    return Asset(name=f"deliveries {archive}", uri=f"damage-atlas://archives/{archive}/deliveries")


# Which model is trained is known when the task runs.
PROMOTED = AssetAlias("promoted models")


def announce_model(context: Any, result: Any) -> None:
    """What the task ``train`` does last: the archives of the model are re-clustered with it, if it was promoted."""
    if isinstance(result, dict) and result.get("promoted") is False:
        return
    with told_to_airflow():
        archive = archive_named(context["params"]["archive"])
    context["outlet_events"][PROMOTED].add(model_asset(archive.model))


@contextmanager
def told_to_airflow() -> Iterator[None]:
    """An error of ours fails the task for good unless it says that a retry may help."""
    try:
        yield
    except AtlasError as error:
        if error.retryable:
            raise
        raise AirflowFailException(error.message) from error


def located(folder: str) -> str:
    """A folder of an archive file as an address: relative ones lie under $DAMAGE_ATLAS_DATA."""
    if "://" in folder or folder.startswith("/"):
        return folder
    return f"{absolute(DATA)}/{folder}"


@task(
    retries=2,
    execution_timeout=timedelta(minutes=5),
    doc_md="Freezes what the run does: images, model version, settings, and the version that it builds on.",
)
def open_run(kind: RunKind, archive: str | None = None) -> str:
    """Write the run's run.yaml and return the run's address; a retry gets the same run.

    Args:
        archive: name of the archive; by default the form's.
    """
    context = get_current_context()
    dag_run, params = context["dag_run"], context["params"]
    with told_to_airflow():
        spec = archive_named(archive or params["archive"])
        training = kind == "train"
        version = params.get("model_version")
        images = spec.training_images if training else spec.images
        if images is None:
            raise InputError(f"archive {spec.archive} names no training_images; add them to its file.")
        settings = spec.training_settings if training else spec.settings
        notifiers_of(spec)  # hours before the first alert, not when it is due
        changes = [f"train.iterations={params['iterations']}"] if params.get("iterations") else []
        return start_run(
            Store(STORE),
            kind=kind,
            archive=spec.archive,
            images=located(images),
            model=f"{spec.model}@{version}" if version else spec.model,
            settings=with_overrides(settings, changes, "form"),
            delivery=params.get("delivery") or _announced_delivery(context),
            run_id=_run_id(dag_run.run_after.strftime("%Y%m%dT%H%M%SZ"), dag_run.run_id),
        ).uri


def archive_named(name: str) -> ArchiveSpec:
    """The archive file of that name; InputError where there is none."""
    found = next((archive for archive in archives() if archive.archive == name), None)
    if found is None:
        raise InputError(f"there is no archive {name} in {ARCHIVES}; add {name}.yaml or choose another.")
    return found


def _announced_delivery(context: Any) -> str | None:
    """The last by name of the deliveries whose events started this run; None if it was started otherwise."""
    events = [event for each in (context.get("triggering_asset_events") or {}).values() for event in each]
    named = {str(event.extra["delivery"]) for event in events if (event.extra or {}).get("delivery")}
    return max(named, default=None)


class ReportLink(BaseOperatorLink):  # type: ignore[misc]
    """A button on a task that leads to the run's report, within Airflow."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The tab of ``infra/airflow/plugins/damage_atlas_reports.py``, from where Airflow's pages begin."""
        return f"dags/{quote(ti_key.dag_id)}/runs/{quote(ti_key.run_id, safe='')}/plugin/damage-atlas-report"


def stage_task(stage: str, run_uri: Any, **more: Any) -> RayJobOperator:
    """A stage of the run as a Ray job; its id and its attempt follow the run, so that a retry adopts a live job.

    Args:
        more: further arguments of the operator.
    """
    timeout = TIMEOUTS.get(stage, _TIMEOUT)
    operator = RayJobOperator(
        task_id=stage,
        entrypoint=f"python -m workers.{stage} '{run_uri}' --attempt {{attempt}}",
        # Airflow writes run.yaml, and the workers read it.
        same_versions=["damage-atlas"],
        execution_timeout=timeout,
        job_timeout=timeout,
        doc_md=STAGE_DOCS[stage],
        pool=GPU_POOL if stage in GPU_STAGES else None,
        **more,
    )
    if stage in ("report", "publish"):
        operator.operator_extra_links = (ReportLink(),)
    return operator


def alert_task(archive: ArchiveSpec, run_uri: Any) -> Any:
    """Tells of the run's alerts: through the archive's notifiers, and as an event of the asset damage_alerts_<archive>.

    A quiet run's task is skipped: nothing is sent, and no event is emitted. When a notifier fails the others are still
    asked, then the try fails; the next try asks all of them again.
    """
    asset = Asset(f"damage_alerts_{archive.archive}")

    @task(task_id="alert", outlets=[asset], retries=2, execution_timeout=timedelta(minutes=10), doc_md=ALERT_DOC)
    def alert(run_uri: str) -> int:
        run = Run.load(run_uri)
        found = Alerts.model_validate_json(run.read("cluster", "alerts.json"))
        if not found.alerts:
            raise AirflowSkipException(f"version {found.version} is quiet: {found.not_compared or 'no alert'}")
        report = run.store.uri(run.artifact("report").outputs["index.html"].key)
        lines = [f"{n}. {one.text} Look first at {one.medoid.uri}" for n, one in enumerate(found.alerts, 1)]
        subject = f"{archive.archive} version {found.version}: {len(lines)} alert{'s' if len(lines) > 1 else ''}"
        context = get_current_context()
        context["outlet_events"][asset].extra = {
            "version": found.version, "run": run_uri, "report": report,
            "alerts": [{"kind": a.kind, "cluster_id": a.cluster_id, "text": a.text} for a in found.alerts],
        }  # fmt: skip
        words = {
            "alert_subject": subject,
            "alert_text": "\n".join([subject, *lines, f"Report: {report}"]),
            "alerts": found.model_dump(mode="json")["alerts"],
        }
        print(words["alert_text"])
        failed = []
        for notifier in notifiers_of(archive):
            try:
                notifier({**context, **words})
            except Exception as error:  # whatever a provider raises: the other notifiers must still be asked
                failed.append(f"{type(notifier).__name__}: {error}")
        if failed:
            raise AirflowException(f"{len(failed)} notifiers failed: {'; '.join(failed)}")
        return len(lines)

    return alert(run_uri)


def notifiers_of(archive: ArchiveSpec) -> list[BaseNotifier]:
    """The notifiers that the archive's file names.

    Raises:
        InputError: one cannot be imported, is no notifier, or does not take its arguments.
    """
    notifiers = []
    for spec in archive.notifiers:
        module, _, name = spec.notifier.partition(":")
        try:
            notifier = getattr(importlib.import_module(module), name)(**spec.arguments)
        except (ImportError, AttributeError, TypeError) as error:
            raise InputError(
                f"archive {archive.archive}: notifier {spec.notifier} cannot be used ({error}). Install its provider "
                "where Airflow runs, or mend the archive's file."
            ) from error
        if not isinstance(notifier, BaseNotifier):
            raise InputError(f"archive {archive.archive}: {spec.notifier} is not an Airflow notifier.")
        notifiers.append(notifier)
    return notifiers


def _run_id(moment: str, airflow_run_id: str) -> str:
    return f"{moment}-{hashlib.sha256(airflow_run_id.encode()).hexdigest()[:6]}"


ALERT_DOC = "Tells of new damage: asks the archive's notifiers and emits an asset event. Skipped when a run is quiet."

STAGE_DOCS = {
    "catalog": "Lists, checks, hashes and tiles the images; quarantines what cannot be read, with the reason.",
    "train": "Learns the embedding by Ray Train and registers a model version.",
    "embed": "Embeds, by Ray Data, the images that no earlier run has embedded.",
    "index": "Adds new vectors to the previous version's FAISS index, or builds one, and measures its recall.",
    "cluster": "Lays out the map, finds clusters and gives them the ids they had before.",
    "explain": "Picks the nearest images of each cluster and draws what the model looks at.",
    "report": "Writes the page people read, its figures and its JSON twin.",
    "publish": "Verifies every digest and makes the run the archive's current version.",
}

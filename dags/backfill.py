"""Past deliveries of an archive become versions, one after the other, the oldest first.

For an archive that begins with years of deliveries, or that missed some: each delivery after those that the current
version lists gets a run of the archive's own DAG, which must be switched on. There the runs wait for each other; one
that fails stops none of the later ones, whose versions list its images as well.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from atlas_flow import DEFAULTS, STORE, archive_named, archives, located, told_to_airflow
from damage_atlas.errors import InputError
from damage_atlas.store import Run, Store, current_version, read_version
from notify import alerts

delivered = [archive.archive for archive in archives() if archive.settings.catalog.deliveries == "folder"]


def delivery(title: str, description: str) -> Param:
    """A field of the form for the name of a delivery."""
    return Param(None, type=["string", "null"], maxLength=255, title=title, description=description)


with DAG(
    dag_id="backfill",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS | {"execution_timeout": timedelta(minutes=10)},
    tags=["damage-atlas", "recluster"],
    doc_md=__doc__,
    params={
        "archive": Param(
            delivered[0] if delivered else "",
            type="string",
            enum=delivered or [""],
            title="Archive",
            description="One whose sub-folders are deliveries (`catalog.deliveries: folder`).",
        ),
        "first": delivery("First delivery", "Empty: the one after those that the current version lists."),
        "last": delivery("Last delivery", "Empty: the newest."),
    },
    **alerts(1),
) as dag:

    @task(doc_md="Finds the deliveries that no version lists yet.")
    def past_deliveries() -> list[dict[str, object]]:
        """A run of the archive's DAG for each, in the order of their names."""
        context = get_current_context()
        params, run_id = context["params"], context["dag_run"].run_id
        with told_to_airflow():
            archive = archive_named(params["archive"])
            there = sorted(Store(located(archive.images)).list_folders())
            if not there:
                raise InputError(
                    f"there is no delivery under {located(archive.images)}, as the machine sees it that runs Airflow's "
                    "tasks. It has to see the images as Ray does."
                )
            for name in (params["first"], params["last"]):
                if name and name not in there:
                    raise InputError(f"delivery {name!r} is not there; there are: {', '.join(there)}.")
            listed = _listed(archive.archive)
        found = [
            name
            for name in there
            if not name.startswith(".")
            and (listed is None or name > listed)
            and name >= (params["first"] or "")
            and (not params["last"] or name <= params["last"])
        ]
        if not found:
            raise AirflowSkipException(f"of {', '.join(there)}, all are listed up to {listed}")
        print(f"{len(found)} deliveries: {', '.join(found)}")
        return [{"conf": {"delivery": name}, "trigger_run_id": f"{run_id}__{name}"} for name in found]

    TriggerDagRunOperator.partial(
        task_id="recluster",
        trigger_dag_id="recluster_{{ params.archive }}",
        fail_when_dag_is_paused=True,
        skip_when_already_exists=True,  # when a person clears the task
        max_active_tis_per_dagrun=1,  # one after the other, in order
        retries=0,  # while it waited to be tried again, later deliveries would pass it; Airflow's own client is patient
        doc_md="Puts a run of the archive's DAG into its queue.",
    ).expand_kwargs(past_deliveries())


def _listed(archive: str) -> str | None:
    """The newest delivery that the archive's current version lists; None without a version."""
    store = Store(STORE)
    if current_version(store, archive) is None:
        return None
    run = Run.load(store.uri(read_version(store, archive).run_key))
    return max(run.artifact("catalog").facts["deliveries"], default=None)

"""One DAG for each archive file: embed what is new, cluster, explain, publish the next version, and tell of alerts."""

from __future__ import annotations

from airflow.sdk import DAG, AssetOrTimeSchedule, Param, chain
from airflow.timetables.trigger import CronTriggerTimetable

from atlas_flow import DEFAULTS, alert_task, archives, delivery_asset, model_asset, open_run, stage_task
from damage_atlas.contracts import STAGES_OF_KIND
from damage_atlas.spec import NAME_PATTERN, ArchiveSpec
from notify import alerts

DOCS = """
### {archive}

{description}

Re-clusters the archive with its promoted model and publishes the next version of the atlas. Vectors of earlier runs
are reused; clusters keep the ids they had. One run at a time: a second one waits.

* **Starts**: {starts}, when `train_model` has promoted a new version of the model, and when an event of the asset
  `deliveries {archive}` says that a delivery has come
* **Images**: `{images}`
* **Model**: `{model}`
* **Alerts**: new damage is told of through the archive's notifiers and as an event of the asset
  `damage_alerts_{archive}`; a quiet run skips that task.
* **When it fails**: the failing task's log ends with what happened and what to do. Retrying or clearing a task goes on
  where it stopped; a run that was not published is invisible to readers.
"""


def recluster_dag(archive: ArchiveSpec) -> DAG:
    """The re-clustering DAG of one archive."""
    cron = CronTriggerTimetable(archive.schedule, timezone=archive.timezone) if archive.schedule else None
    events = model_asset(archive.model) | delivery_asset(archive.archive)
    starts = f"by the clock (`{archive.schedule}`, {archive.timezone})" if cron else "by hand"
    with DAG(
        dag_id=f"recluster_{archive.archive}",
        schedule=AssetOrTimeSchedule(timetable=cron, assets=events) if cron else events,
        catchup=False,
        max_active_runs=1,
        default_args=DEFAULTS | {"owner": archive.owner},
        tags=["damage-atlas", "recluster", *archive.tags],
        doc_md=DOCS.format(**archive.model_dump(), starts=starts),
        params={
            "delivery": Param(
                None,
                type=["string", "null"],
                maxLength=255,
                title="Delivery",
                description="List the archive up to and with this delivery. Empty: all there are.",
            ),
            "model_version": Param(
                None,
                type=["string", "null"],
                pattern=f"^({NAME_PATTERN.pattern})?$",
                title="Model version",
                description="Empty: the version that is promoted when the run starts.",
            ),
        },
        **alerts(archive.deadline_hours),
    ) as dag:
        run = open_run("recluster", archive.archive)
        chain(run, *(stage_task(stage, run) for stage in STAGES_OF_KIND["recluster"]), alert_task(archive, run))
    return dag


for spec in archives():
    globals()[f"recluster_{spec.archive}"] = recluster_dag(spec)

"""One DAG for each archive file: embed what is new, cluster, explain, publish the next version, and tell of alerts."""

from __future__ import annotations

from airflow.sdk import DAG, Param, chain
from airflow.timetables.trigger import CronTriggerTimetable

from atlas_flow import DEFAULTS, alert_task, archives, open_run, stage_task
from damage_atlas.contracts import STAGES_OF_KIND
from damage_atlas.spec import ArchiveSpec

DOCS = """
### {archive}

{description}

Re-clusters the archive with its promoted model and publishes the next version of the atlas. Vectors of earlier runs
are reused; clusters keep the ids they had. One run at a time: a second one waits.

* **Images**: `{images}`
* **Model**: `{model}`
* **Alerts**: new damage is told of through the archive's notifiers and as an event of the asset
  `damage_alerts_{archive}`; a quiet run skips that task.
* **When it fails**: the failing task's log ends with what happened and what to do. Retrying or clearing a task goes on
  where it stopped; a run that was not published is invisible to readers.
"""


def recluster_dag(archive: ArchiveSpec) -> DAG:
    """The re-clustering DAG of one archive."""
    with DAG(
        dag_id=f"recluster_{archive.archive}",
        schedule=CronTriggerTimetable(archive.schedule, timezone=archive.timezone) if archive.schedule else None,
        catchup=False,
        max_active_runs=1,
        default_args=DEFAULTS | {"owner": archive.owner},
        tags=["damage-atlas", "recluster", *archive.tags],
        doc_md=DOCS.format(**archive.model_dump()),
        params={
            "delivery": Param(
                None,
                type=["string", "null"],
                title="Delivery",
                description="List the archive up to and with this delivery. Empty: all there are.",
            ),
            "model_version": Param(
                None,
                type=["string", "null"],
                title="Model version",
                description="Empty: the version that is promoted when the run starts.",
            ),
        },
    ) as dag:
        run = open_run("recluster", archive.archive)
        chain(run, *(stage_task(stage, run) for stage in STAGES_OF_KIND["recluster"]), alert_task(archive, run))
    return dag


for spec in archives():
    globals()[f"recluster_{spec.archive}"] = recluster_dag(spec)

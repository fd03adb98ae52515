"""Two DAGs that look after the store: what was published is re-hashed, what never was is taken away."""

from __future__ import annotations

import json
import shlex
from datetime import timedelta

from airflow.sdk import DAG, Param, get_current_context, task
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_ray_jobs import RayJobOperator
from atlas_flow import DEFAULTS, STORE, archives, told_to_airflow
from damage_atlas.store import Store, current_version
from damage_atlas.store.retention import prune
from notify import alerts

VERIFY_DOCS = """
### Verify what is published

Re-hashes everything that each archive's current version holds, on Ray. A task that fails names the objects that are
gone or were changed: restore them from a backup, or go back to a sound version (`damage-atlas rollback`).
"""

PRUNE_DOCS = """
### Take away what was never published

Runs that failed or were given up leave their folders in the store. A run whose newest stage is older than `days` is
marked, and deleted a day later. Versions, vectors, models and what is known about files stay.
"""

names = [archive.archive for archive in archives()]

with DAG(
    dag_id="verify_published",
    schedule=CronTriggerTimetable("0 5 * * 0", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["damage-atlas", "maintenance"],
    doc_md=VERIFY_DOCS,
    **alerts(24),
) as verify_published:

    @task(execution_timeout=timedelta(minutes=5), doc_md="Finds the archives that have a version.")
    def published() -> list[str]:
        """A command for each archive that has a version."""
        store = Store(STORE)
        with told_to_airflow():
            found = [name for name in names if current_version(store, name) is not None]
        return [shlex.join(["python", "-m", "workers.verify", STORE, name]) for name in found]

    RayJobOperator.partial(
        task_id="verify",
        same_versions=["damage-atlas"],
        execution_timeout=timedelta(hours=12),
        doc_md="Re-hashes one archive's current version.",
    ).expand(entrypoint=published())

with DAG(
    dag_id="prune_runs",
    schedule=CronTriggerTimetable("30 4 * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["damage-atlas", "maintenance"],
    doc_md=PRUNE_DOCS,
    params={
        "days": Param(30, type="number", minimum=1, title="Days", description="Runs with a younger stage stay."),
    },
    **alerts(24),
) as prune_runs:

    @task(task_id="prune", execution_timeout=timedelta(hours=2), max_active_tis_per_dag=1)
    def prune_archive(name: str) -> str:
        """Marks and deletes the archive's unpublished runs; says which."""
        with told_to_airflow():
            done = prune(Store(STORE), name, get_current_context()["params"]["days"])
        told = json.dumps({"archive": name} | vars(done))
        print(told)
        return told

    prune_archive.override(doc_md=prune_archive.__doc__).expand(name=names)

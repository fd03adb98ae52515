"""Stops Ray jobs that no task of this Airflow waits for any more.

Tasks stop their own jobs when they are marked, cleared or deleted. What no task could see, this finds: a run that was
deleted while the triggerer was down, for example. Jobs of people and of other Airflows are never touched.

When it fails, nothing was stopped unless its log says so: Airflow or Ray could not be asked, or Ray refused a stop.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_ray_jobs import RayReaperOperator
from notify import alerts

with DAG(
    dag_id="ray_reaper",
    schedule=CronTriggerTimetable("*/5 * * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    # A safety net that has to be switched on first is none.
    is_paused_upon_creation=False,
    default_args={
        "owner": "inspection",
        "retries": 1,
        "retry_delay": timedelta(seconds=30),
        "execution_timeout": timedelta(minutes=4),
    },
    tags=["damage-atlas", "maintenance"],
    doc_md=__doc__,
    **alerts(1),
) as dag:
    RayReaperOperator(task_id="reap", doc_md="Looks at every live Ray job of this Airflow, twice, before it stops one.")

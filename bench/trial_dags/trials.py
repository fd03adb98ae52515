"""The project's own re-clustering DAGs for the trials; only waiting is cut short, and some tasks get too little time.

Retries come after 2 s instead of 30. The reaper runs when asked, and takes its second look after 2 s instead of 30.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "dags"))

from airflow.sdk import DAG

import recluster
from airflow_ray_jobs import RayReaperOperator
from atlas_flow import archives

# By archive: the stage that gets too little time, and how many seconds.
timeouts = json.loads(os.environ["DAMAGE_ATLAS_TRIAL_TIMEOUTS"])

for archive in archives():
    dag = getattr(recluster, f"recluster_{archive.archive}")
    for task in dag.tasks:
        task.retry_delay = timedelta(seconds=2)
    if archive.archive in timeouts:
        stage, seconds = timeouts[archive.archive]
        task = dag.get_task(stage)
        task.execution_timeout = task.job_timeout = timedelta(seconds=seconds)
        task.retries = 1
    globals()[dag.dag_id] = dag

with DAG("reaper", schedule=None, default_args={"owner": "trials", "execution_timeout": timedelta(minutes=4)}):
    RayReaperOperator(task_id="reap", grace=timedelta(seconds=1), confirm_after=timedelta(seconds=2))

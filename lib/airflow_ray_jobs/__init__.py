"""Runs Ray jobs as Airflow tasks, through Ray's Jobs REST API. Needs neither ray nor a worker slot while a job runs."""

from airflow_ray_jobs.hook import RayHook
from airflow_ray_jobs.operator import RayJobOperator
from airflow_ray_jobs.reaper_operator import RayReaperOperator
from airflow_ray_jobs.trigger import RayJobTrigger

__all__ = ["RayHook", "RayJobOperator", "RayJobTrigger", "RayReaperOperator"]

"""Runs Ray jobs as Airflow tasks, through Ray's Jobs REST API. Needs neither ray nor a worker slot while a job runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_ray_jobs.hook import RayHook
    from airflow_ray_jobs.operator import RayJobOperator
    from airflow_ray_jobs.reaper_operator import RayReaperOperator
    from airflow_ray_jobs.trigger import RayJobTrigger

__all__ = ["RayHook", "RayJobOperator", "RayJobTrigger", "RayReaperOperator"]

_MODULES = {
    "RayHook": "hook",
    "RayJobOperator": "operator",
    "RayJobTrigger": "trigger",
    "RayReaperOperator": "reaper_operator",
}


def __getattr__(name: str) -> Any:
    # Lazily: Airflow imports this package for its provider's record while Airflow itself is only half imported.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

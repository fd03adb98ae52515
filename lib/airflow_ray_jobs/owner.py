"""Whose job it is: the labels that a task writes on its job, and how a reaper reads them. Pure; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MARK = "airflow_ray_jobs"
MARK_VERSION = "1"  # of the meaning of these labels; a job with another one is left alone


@dataclass(frozen=True)
class Owner:
    """The task instance that submitted a job; ``map_index`` is -1 for an unmapped task.

    ``instance`` names the Airflow it lives in: several may share a Ray cluster, with the same DAGs and run ids.
    """

    instance: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int

    def labels(self) -> dict[str, str]:
        """The metadata of the job."""
        return {
            MARK: MARK_VERSION,
            "airflow_instance": self.instance,
            "airflow_dag_id": self.dag_id,
            "airflow_run_id": self.run_id,
            "airflow_task_id": self.task_id,
            "airflow_map_index": str(self.map_index),
        }

    @classmethod
    def read(cls, labels: Mapping[str, str]) -> Owner | None:
        """The inverse of :meth:`labels`; None when the job is not ours, or not in words that we know."""
        if labels.get(MARK) != MARK_VERSION:
            return None
        try:
            return cls(
                instance=labels["airflow_instance"],
                dag_id=labels["airflow_dag_id"],
                run_id=labels["airflow_run_id"],
                task_id=labels["airflow_task_id"],
                map_index=int(labels["airflow_map_index"]),
            )
        except (KeyError, ValueError):
            return None

    def __str__(self) -> str:
        mapped = f"[{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.dag_id}.{self.task_id}{mapped} of run {self.run_id}"

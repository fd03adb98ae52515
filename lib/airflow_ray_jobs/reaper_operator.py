"""`RayReaperOperator`: the reaper as a task of a maintenance DAG."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow_ray_jobs.airflow_compat import (
    AirflowException,
    BaseOperator,
    Context,
    instance_id,
    task_instance_state,
)
from airflow_ray_jobs.hook import RayHook
from airflow_ray_jobs.owner import Owner
from airflow_ray_jobs.reaper import reap


class RayReaperOperator(BaseOperator):
    """Stops Ray jobs of this Airflow that no task waits for any more; see :mod:`airflow_ray_jobs.reaper`.

    Returns how many live jobs of this Airflow there were and the ids of those that were stopped. Raises
    AirflowException, having stopped nothing, when Airflow's answers cannot be trusted; and after the others were
    stopped, when Ray refuses to stop some.

    :param ray_conn_id: connection of type ``ray``. Templated.
    :param grace: age below which a job is left alone.
    :param confirm_after: time between the two looks that must agree before a job is stopped.
    """

    template_fields: Sequence[str] = ("ray_conn_id",)
    ui_color = "#fee2e2"

    def __init__(
        self,
        *,
        ray_conn_id: str = RayHook.default_conn_name,
        grace: timedelta = timedelta(minutes=2),
        confirm_after: timedelta = timedelta(seconds=30),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ray_conn_id = ray_conn_id
        self.grace = grace
        self.confirm_after = confirm_after

    def execute(self, context: Context) -> dict[str, Any]:
        """One round."""
        ti = context["ti"]
        me = Owner(instance_id(), ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index)
        # An Airflow that does not know of this very task would make every job look abandoned.
        if (state := _state_of(me)) != "running":
            raise AirflowException(f"Airflow says that this running task is {state}; its answers cannot be trusted.")
        with RayHook(self.ray_conn_id).get_conn() as client:
            reaped = reap(
                client, _state_of, me.instance, self.grace.total_seconds(), self.confirm_after.total_seconds()
            )
        self.log.info("%d live Ray jobs of this Airflow; stopped %d.", reaped.ours, len(reaped.stopped))
        if reaped.errors:
            raise AirflowException("Ray jobs that could not be stopped:\n" + "\n".join(reaped.errors))
        return {"ours": reaped.ours, "stopped": reaped.stopped}


def _state_of(owner: Owner) -> str:
    return task_instance_state(owner.dag_id, owner.run_id, owner.task_id, owner.map_index)

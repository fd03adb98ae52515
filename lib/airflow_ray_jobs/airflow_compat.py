"""The only module that imports Airflow: everything that moves between its versions, from 3.0 to 3.3."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, Context, Variable
from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory
from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_ray_jobs.status import CLEARED, GONE

try:
    from airflow.sdk import BaseHook
    from airflow.sdk.bases.decorator import determine_kwargs
    from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
except ImportError:  # Airflow 3.0
    from airflow.exceptions import AirflowException, AirflowFailException, TaskDeferred
    from airflow.hooks.base import BaseHook
    from airflow.utils.operator_helpers import determine_kwargs

try:
    from airflow.sdk.configuration import conf
except ImportError:
    from airflow.configuration import conf

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = [
    "SET_DURING_EXECUTION",
    "AirflowException",
    "AirflowFailException",
    "BaseHook",
    "BaseOperator",
    "BaseTrigger",
    "Context",
    "DecoratedOperator",
    "TELLS_OF_KILLS",
    "TaskDecorator",
    "TaskDeferred",
    "TriggerEvent",
    "connection_for_trigger",
    "determine_kwargs",
    "heartbeat_interval_s",
    "instance_id",
    "keeps_numbers",
    "recall",
    "remember",
    "task_decorator_factory",
    "task_instance_state",
    "task_state",
]

# Whether the triggerer calls on_kill of a trigger whose task a person marked, cleared or deleted (Airflow 3.3).
TELLS_OF_KILLS = hasattr(BaseTrigger, "on_kill")

INSTANCE_VARIABLE = "airflow_ray_jobs_instance"
SETTLE_S = 5.0  # once in the life of an Airflow


async def connection_for_trigger(conn_id: str) -> Connection:
    """The connection, looked up without blocking the triggerer's event loop."""
    if hasattr(BaseHook, "aget_connection"):
        return await BaseHook.aget_connection(conn_id)
    return await sync_to_async(BaseHook.get_connection)(conn_id)


def heartbeat_interval_s() -> float:
    """How long after a task's process has ended its supervisor may still live, in seconds."""
    return float(conf.getint("workers", "min_heartbeat_interval", fallback=5))


def keeps_numbers(context: Context) -> bool:
    """Whether :func:`remember` keeps anything here."""
    return context.get("task_state_store") is not None


def remember(context: Context, key: str, value: int) -> None:
    """Keeps a number across the tries of this task instance (``task_state_store``, Airflow 3.3).

    ``dag.test()`` and older versions have no store: nothing is kept there.
    """
    if store := context.get("task_state_store"):
        store.set(key, value)


def recall(context: Context, key: str) -> int:
    """What :func:`remember` kept; 0 when nothing was."""
    store = context.get("task_state_store")
    value = store.get(key) if store else None
    return value if isinstance(value, int) else 0


def instance_id() -> str:
    """Id of this Airflow: what its Variable ``airflow_ray_jobs_instance`` says, which is made at first use.

    It lives in Airflow's database, so all components and restarts share it and no other Airflow has it. A copy of
    the database does: delete the Variable in the copy. Only a task may ask.
    """
    known = Variable.get(INSTANCE_VARIABLE, default=None)
    if known is None:
        Variable.set(INSTANCE_VARIABLE, uuid.uuid4().hex, "Labels this Airflow's Ray jobs; its reaper stops no others.")
        # Two first tasks may come together, and the later one counts: both read it when both have written.
        time.sleep(SETTLE_S)
        known = Variable.get(INSTANCE_VARIABLE)
    return str(known)


def task_instance_state(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """State of a task instance as the database has it now: Airflow's word, ``gone`` or ``cleared`` (no state).

    Only a task or a trigger may ask. Raises when Airflow does not answer.
    """
    # Inside the function: the task runner is there only where a task or a trigger runs.
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = RuntimeTaskInstance.get_task_states(
        dag_id=dag_id, task_ids=[task_id], run_ids=[run_id], map_index=map_index
    )
    state = states.get(run_id, {}).get(task_id if map_index < 0 else f"{task_id}_{map_index}", GONE)
    return CLEARED if state is None else str(getattr(state, "value", state))


async def task_state(task_instance: Any) -> str:
    """:func:`task_instance_state` of the record that the triggerer gives to a trigger."""
    ti = task_instance
    return await sync_to_async(task_instance_state)(ti.dag_id, ti.run_id, ti.task_id, ti.map_index)

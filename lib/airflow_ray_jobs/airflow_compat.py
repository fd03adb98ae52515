"""The only module that imports Airflow: everything that moves between its versions. Written for Airflow 3.3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook, BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = [
    "AirflowException",
    "AirflowFailException",
    "BaseHook",
    "BaseOperator",
    "BaseTrigger",
    "Context",
    "TaskDeferred",
    "TriggerEvent",
    "connection_for_trigger",
    "recall",
    "remember",
    "task_state",
]


async def connection_for_trigger(conn_id: str) -> Connection:
    """The connection, looked up without blocking the triggerer's event loop."""
    return await BaseHook.aget_connection(conn_id)


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


async def task_state(task_instance: Any) -> str | None:
    """State of a trigger's task instance as the database has it now; None while it is being cleared.

    ``task_instance`` is the record that the triggerer gives to a trigger.
    """
    # Inside the function: the task runner is there only where a task or a trigger runs.
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = await sync_to_async(RuntimeTaskInstance.get_task_states)(
        dag_id=task_instance.dag_id,
        task_ids=[task_instance.task_id],
        run_ids=[task_instance.run_id],
        map_index=task_instance.map_index,
    )
    of_run = states.get(task_instance.run_id, {})
    mapped = f"{task_instance.task_id}_{task_instance.map_index}"
    state = of_run.get(task_instance.task_id if task_instance.map_index < 0 else mapped)
    return None if state is None else str(getattr(state, "value", state))

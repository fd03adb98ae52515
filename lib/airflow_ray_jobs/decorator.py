"""``@task.ray_job``: a function that returns the command of a Ray job."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from airflow_ray_jobs.airflow_compat import (
    SET_DURING_EXECUTION,
    Context,
    DecoratedOperator,
    TaskDecorator,
    determine_kwargs,
    task_decorator_factory,
)
from airflow_ray_jobs.client import JobRequest
from airflow_ray_jobs.operator import RayJobOperator


class RayJobDecoratedOperator(DecoratedOperator, RayJobOperator):
    """Runs what the decorated function returns as a Ray job; templates in it are rendered.

    The function is called in Airflow's worker, once for each attempt that is submitted; adopting a live job or taking
    a result does not call it.
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *RayJobOperator.template_fields)
    template_fields_renderers = {
        **DecoratedOperator.template_fields_renderers,
        **RayJobOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.ray_job"
    # So that the UI shows the command, which is not known before.
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., str],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            entrypoint=SET_DURING_EXECUTION,
            **kwargs,
        )

    def execute(self, context: Context) -> Any:
        """As the operator does: DecoratedOperator would call the function and return what it says."""
        return RayJobOperator.execute(self, context)

    def _request(self, context: Context, attempt: int) -> JobRequest:
        kwargs = determine_kwargs(self.python_callable, self.op_args, {**context, **self.op_kwargs})
        command = self.python_callable(*self.op_args, **kwargs)
        if not isinstance(command, str) or not command.strip():
            raise TypeError(f"A function behind @task.ray_job has to return a command, and returned {command!r}.")
        self.entrypoint = self.render_template(command, context)
        return super()._request(context, attempt)


def ray_job_task(python_callable: Callable[..., str] | None = None, **kwargs: Any) -> TaskDecorator:
    """``@task.ray_job``; its arguments are those of :class:`~airflow_ray_jobs.operator.RayJobOperator`."""
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=RayJobDecoratedOperator, **kwargs
    )

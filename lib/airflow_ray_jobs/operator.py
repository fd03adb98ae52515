"""`RayJobOperator`: one Airflow task = one Ray job, adopted, followed or started again as `status.py` decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from airflow_ray_jobs.airflow_compat import (
    AirflowException,
    AirflowFailException,
    BaseOperator,
    Context,
    TaskDeferred,
    heartbeat_interval_s,
    instance_id,
    keeps_numbers,
    recall,
    remember,
)
from airflow_ray_jobs.client import JobInfo, JobRequest, RayJobsClient
from airflow_ray_jobs.errors import (
    InvalidConnection,
    InvalidRequest,
    RayJobsError,
    RayUnreachable,
    VersionMismatch,
)
from airflow_ray_jobs.hook import RayHook
from airflow_ray_jobs.outcome import Outcome, outcome_of
from airflow_ray_jobs.owner import Owner
from airflow_ray_jobs.preflight import check_ray, guard_variables, guarded
from airflow_ray_jobs.protocol import ATTEMPT_VARIABLE, attempt_id
from airflow_ray_jobs.status import Stand, Step, next_step
from airflow_ray_jobs.trigger import RayJobTrigger

Answer = TypeVar("Answer")

SUBMITTED = "ray_job_attempt"  # keys of the task state store: the latest attempt that was submitted,
LAST_TRY = "ray_job_last_try"  # and the last try that Airflow allowed then, which moves when a person clears the task

SETTLE_S = 2.0  # from the end of the process that deferred a task to Airflow's knowing of it, beside the heartbeat


class RayJobOperator(BaseOperator):
    """Runs ``entrypoint`` as a Ray job and returns what the job wrote as ``RAY_JOB_RESULT`` (see ``protocol.py``).

    The task is deferred while the job runs. Attempt ``n`` of the job has the submission id ``<submission_id>-<n>``
    (``<submission_id>-map<i>-<n>`` for a mapped task). A later try adopts a live job and takes a result that is
    there; after a failed, stopped or lost job it submits the next attempt. Clearing the task stops a live job and
    submits the next attempt, also after a success: a person asked for the work to be done again.

    Raises AirflowException with the end of the job's log when the job fails, and AirflowFailException (no retry)
    when the job says that a retry cannot help, Ray rejects the request, or the connection cannot be used.

    :param entrypoint: shell command; ``{attempt}`` in it becomes the attempt number. Templated.
    :param submission_id: base of the job's id, the same for all tries of one task instance. Templated.
    :param env_vars: environment of the job, visible in Ray's dashboard: no secrets. ``RAY_JOB_ATTEMPT`` is added.
        Templated.
    :param metadata: labels of the job; those that name the Airflow task are added. Templated.
    :param ray_conn_id: connection of type ``ray``. Templated.
    :param num_cpus: CPUs reserved for the entrypoint's own process; likewise ``num_gpus`` and ``custom_resources``.
    :param same_versions: distributions that must be there in the same version on both sides, Python's minor version
        too, before the entrypoint starts; and Ray's version must be one that they ask for.
    :param job_timeout: time from submission after which the job is stopped and the try fails; by default the
        task's ``execution_timeout``, which Airflow itself does not apply while a task is deferred.
    :param queue_timeout: how long the job may wait for its resources before it is stopped and the try fails.
    :param patience: how long Ray may be silent (a head that restarts) before the try fails.
    :param max_poll: time between two looks at the job; the first looks come faster.
    """

    template_fields: Sequence[str] = ("entrypoint", "submission_id", "env_vars", "metadata", "ray_conn_id")
    template_fields_renderers = {"entrypoint": "bash", "env_vars": "json", "metadata": "json"}
    ui_color = "#dbeafe"

    def __init__(
        self,
        *,
        entrypoint: str,
        submission_id: str = "{{ dag.dag_id }}-{{ run_id }}-{{ task.task_id }}",
        env_vars: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        ray_conn_id: str = RayHook.default_conn_name,
        num_cpus: float = 0,
        num_gpus: float = 0,
        custom_resources: Mapping[str, float] | None = None,
        same_versions: Sequence[str] = (),
        job_timeout: timedelta | None = None,
        queue_timeout: timedelta | None = None,
        patience: timedelta = timedelta(minutes=5),
        max_poll: timedelta = timedelta(seconds=5),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.entrypoint = entrypoint
        self.submission_id = submission_id
        self.env_vars = dict(env_vars or {})
        self.metadata = dict(metadata or {})
        self.ray_conn_id = ray_conn_id
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.custom_resources = dict(custom_resources or {})
        self.same_versions = tuple(same_versions)
        self.job_timeout = job_timeout or self.execution_timeout
        self.queue_timeout = queue_timeout
        self.patience = patience
        self.max_poll = max_poll
        self._in_flight: str | None = None

    def execute(self, context: Context) -> Any:
        """Looks at the latest attempt, then waits for it, takes its result, or submits the next one."""
        with self._client() as client:
            attempt, info = self._latest_attempt(client, context)
            self._refuse_another_task_s(info, context)
            stand = self._stand(context, attempt)
            step = next_step(info.status if info else None, stand)
            if step is Step.SUBMIT:
                self._submit_and_defer(client, context, attempt + 1)
            submission_id = self._id(context, attempt)
            if step is Step.WAIT:
                if stand is Stand.CLEARED:
                    # The earlier try's trigger may find this try waiting already, and then leaves the job alone.
                    self.log.info(
                        "Stopping Ray job %s: the task was cleared, or its run deleted, since.", submission_id
                    )
                    self._in_flight = submission_id
                    self._patiently(lambda: client.stop(submission_id))
                else:
                    # Not in flight: a worker that is told to end now must not take another try's healthy job along.
                    self.log.info("Adopting Ray job %s, which an earlier try submitted.", submission_id)
                self._defer(context, submission_id, attempt, Stand.CLEARED if stand is Stand.CLEARED else Stand.ADOPTED)
            self.log.info("Ray job %s has ended already; taking its outcome.", submission_id)
            log = self._patiently(lambda: client.log(submission_id))
        return self._finish(context, outcome_of(info, stand, submission_id, attempt, log))

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        """Continues when the trigger has fired: returns the result, fails, or submits the next attempt."""
        said = dict(event)
        if said.pop("try_number", None) not in (None, context["ti"].try_number):
            # Airflow 3.0 and early 3.1 resume a retry with the event of the try that failed (apache/airflow#56704).
            return self.execute(context)
        outcome = Outcome.read(said)
        if outcome.step == Step.SUBMIT.value:
            self.log.info("%s, and its outcome is not this try's.", outcome.message)
            with self._client() as client:
                self._submit_and_defer(client, context, outcome.attempt + 1)
        return self._finish(context, outcome)

    def on_kill(self) -> None:
        """Stops the job when the worker is told to end between submitting (or a clearing's stop) and deferring."""
        if self._in_flight is not None:
            self.log.info("The task was killed: stopping Ray job %s.", self._in_flight)
            with self._client() as client:
                client.stop(self._in_flight)

    def _client(self) -> RayJobsClient:
        try:
            return RayHook(self.ray_conn_id).get_conn()
        except InvalidConnection as error:
            raise AirflowFailException(str(error)) from error

    def _finish(self, context: Context, outcome: Outcome) -> dict[str, Any] | None:
        if outcome.step == Step.TAKE.value:
            return outcome.result
        raise (AirflowException if outcome.retryable else AirflowFailException)(outcome.message)

    def _latest_attempt(self, client: RayJobsClient, context: Context) -> tuple[int, JobInfo | None]:
        """The highest attempt that was submitted, and its job; attempt 0 when there was none.

        A remembered attempt that Ray no longer knows is lost, and its number is not used again: what it wrote
        must not be mistaken for what its successor writes.
        """

        def job(attempt: int) -> JobInfo | None:
            return self._patiently(lambda: client.job(self._id(context, attempt)))

        attempt = recall(context, SUBMITTED)
        info = job(attempt) if attempt else None
        while (later := job(attempt + 1)) is not None:
            attempt, info = attempt + 1, later
        return attempt, info

    def _refuse_another_task_s(self, info: JobInfo | None, context: Context) -> None:
        """Raises when the job is another task instance's, or another Airflow's that names its runs alike."""
        submitted_by = Owner.read(info.metadata) if info else None
        if info and submitted_by not in (None, _owner(context)):
            raise AirflowFailException(
                f"Ray job {info.submission_id} was submitted by {submitted_by}, in the Airflow "
                f"{submitted_by.instance}. Give this task a submission_id of its own: it has to name the run, and the "
                "Airflow too where several share a Ray."
            )

    def _stand(self, context: Context, attempt: int) -> Stand:
        # An attempt that this task instance would remember, and does not, is of a run that was deleted and whose id a
        # new run has now (or of an Airflow before 3.3, which remembered nothing).
        forgotten = keeps_numbers(context) and attempt > recall(context, SUBMITTED)
        if attempt and (forgotten or self._cleared_since(context)):
            return Stand.CLEARED
        return Stand.LATER_TRY if context["ti"].try_number > 1 else Stand.FIRST_TRY

    def _cleared_since(self, context: Context) -> bool:
        """Whether a person cleared the task after its latest attempt was submitted: nothing else moves its last try."""
        return recall(context, LAST_TRY) not in (0, _last_try(context))

    def _submit_and_defer(self, client: RayJobsClient, context: Context, attempt: int) -> NoReturn:
        if self.same_versions:
            try:
                check_ray(self._patiently(client.version), self.same_versions)
            except VersionMismatch as error:
                raise AirflowFailException(str(error)) from error
        request = self._request(context, attempt)
        # Remembered first: an attempt number may be skipped, never used twice.
        remember(context, SUBMITTED, attempt)
        remember(context, LAST_TRY, _last_try(context))
        self._in_flight = request.submission_id
        try:
            self._patiently(lambda: client.submit(request))
        except InvalidRequest as error:
            raise AirflowFailException(f"Ray job {request.submission_id}: {error}") from error
        self.log.info("Submitted Ray job %s: %s", request.submission_id, request.entrypoint)
        self._defer(context, request.submission_id, attempt, Stand.OWN)

    def _request(self, context: Context, attempt: int) -> JobRequest:
        # Not str.format: entrypoints may hold JSON.
        entrypoint = self.entrypoint.replace("{attempt}", str(attempt))
        env_vars = {**_as_text(self.env_vars), ATTEMPT_VARIABLE: str(attempt)}
        if self.same_versions:
            entrypoint = guarded(entrypoint)
            env_vars |= guard_variables(self.same_versions)
        return JobRequest(
            submission_id=self._id(context, attempt),
            entrypoint=entrypoint,
            env_vars=env_vars,
            metadata=_as_text(
                {**self.metadata, **_owner(context).labels(), "airflow_try_number": context["ti"].try_number}
            ),
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            resources=self.custom_resources,
        )

    def _id(self, context: Context, attempt: int) -> str:
        index = context["ti"].map_index
        mapped = index is not None and index >= 0
        return attempt_id(self.submission_id + (f"-map{index}" if mapped else ""), attempt)

    def _wanted(self) -> dict[str, float]:
        """What the job's own process asks for, by Ray's names."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.custom_resources}
        return {name: amount for name, amount in wanted.items() if amount}

    def _defer(self, context: Context, submission_id: str, attempt: int, stand: Stand) -> NoReturn:
        trigger = RayJobTrigger(
            ray_conn_id=self.ray_conn_id,
            submission_id=submission_id,
            attempt=attempt,
            adopted=stand is not Stand.OWN,
            again=stand is Stand.CLEARED,
            max_poll_s=self.max_poll.total_seconds(),
            waiting_since_s=time.time(),
            job_timeout_s=self.job_timeout.total_seconds() if self.job_timeout else None,
            queue_timeout_s=self.queue_timeout.total_seconds() if self.queue_timeout else None,
            patience_s=self.patience.total_seconds(),
            wanted=self._wanted(),
            try_number=context["ti"].try_number,
            settle_s=heartbeat_interval_s() + SETTLE_S,
        )
        raise TaskDeferred(trigger=trigger, method_name="resume")

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """The call's answer; while Ray is silent, tries again for as long as the patience lasts."""
        deadline = time.monotonic() + self.patience.total_seconds()
        while True:
            try:
                return call()
            except RayUnreachable as error:
                if time.monotonic() > deadline:
                    raise AirflowException(f"{error} Tried for {self.patience}; is the Ray head up?") from error
                self.log.warning("%s Trying again.", error)
                time.sleep(2)
            except InvalidRequest:
                raise
            except RayJobsError as error:
                raise AirflowException(str(error)) from error


def _owner(context: Context) -> Owner:
    ti = context["ti"]
    return Owner(instance_id(), ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index)


def _last_try(context: Context) -> int:
    return int(context["ti"].max_tries) + 1


def _as_text(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}

"""Waits for a Ray job in the triggerer: shows its log, keeps its time limits, stops it when a person kills the task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow_ray_jobs.airflow_compat import TELLS_OF_KILLS, BaseTrigger, TriggerEvent, task_state
from airflow_ray_jobs.client import AsyncRayJobsClient, JobInfo
from airflow_ray_jobs.errors import RayJobsError, RayUnreachable
from airflow_ray_jobs.hook import RayHook
from airflow_ray_jobs.log_follower import LogFollower
from airflow_ray_jobs.outcome import Outcome, given_up, outcome_of
from airflow_ray_jobs.resources import waiting_for
from airflow_ray_jobs.status import TERMINAL, Stand, Step, next_step

FIRST_POLL_S = 1.0
POLL_GROWTH = 1.2
STOP_WAIT_S = 20.0  # Ray kills after 3 s; Airflow gives on_kill 30 s
PENDING_STOP_WAIT_S = 5.0
QUEUE_LOOK_S = 30.0  # between two looks at what a waiting job waits for
LOG_TIME_SHARE = 0.05  # reading the log takes at most this share of the time, however long the log has grown

_STOPPING: set[asyncio.Task[None]] = set()  # asyncio itself keeps no task alive


class RayJobTrigger(BaseTrigger):
    """Fires one event, an :class:`~airflow_ray_jobs.outcome.Outcome`, when the job has ended or is given up.

    A restarted or reassigned triggerer begins again with the same arguments, and the job never notices.

    :param ray_conn_id: Airflow connection of the Ray cluster.
    :param submission_id: id of the job, with its attempt.
    :param attempt: the attempt, counted from 1.
    :param adopted: whether an earlier try had submitted the job.
    :param max_poll_s: seconds between two looks; the first come after one second.
    :param waiting_since_s: when this try began to wait, in seconds since 1970.
    :param job_timeout_s: seconds from submission after which the job is stopped; None for no limit.
    :param queue_timeout_s: seconds that this try waits for a PENDING job before it is stopped; None for no limit.
    :param patience_s: seconds without an answer from Ray after which the try fails.
    :param wanted: what the job's own process asks for, by Ray's names.
    :param try_number: the try of the task that waits; part of the event.
    :param settle_s: seconds before which no event is fired. The process that deferred the task may live on for a
        heartbeat; an Airflow that sees it end after the event takes the task for lost and fails it.
    :param again: whether the work is wanted again: however the job ends, the next attempt follows.
    """

    def __init__(
        self,
        ray_conn_id: str,
        submission_id: str,
        attempt: int,
        adopted: bool,
        max_poll_s: float,
        waiting_since_s: float,
        job_timeout_s: float | None,
        queue_timeout_s: float | None,
        patience_s: float,
        wanted: Mapping[str, float] | None = None,
        try_number: int | None = None,
        settle_s: float = 0,
        again: bool = False,
    ) -> None:
        super().__init__()
        self.ray_conn_id = ray_conn_id
        self.submission_id = submission_id
        self.attempt = attempt
        self.adopted = adopted
        self.max_poll_s = max_poll_s
        self.waiting_since_s = waiting_since_s
        self.job_timeout_s = job_timeout_s
        self.queue_timeout_s = queue_timeout_s
        self.patience_s = patience_s
        # A task that was deferred before there were these has none.
        self.wanted = dict(wanted or {})
        self.try_number = try_number
        self.settle_s = settle_s
        self.again = again
        self._follower = LogFollower()
        self._next_log_at = 0.0
        self._next_queue_look_at = time.monotonic() + QUEUE_LOOK_S
        self._waits_for = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What a triggerer needs to build this trigger again; the token stays in the connection."""
        names = ("ray_conn_id", "submission_id", "attempt", "adopted", "again", "max_poll_s", "waiting_since_s",
                 "job_timeout_s", "queue_timeout_s", "patience_s", "wanted", "try_number", "settle_s")  # fmt: skip
        return "airflow_ray_jobs.trigger.RayJobTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Follows the job to its end."""
        # The deferral is in the database by now, and one clock measures.
        settled_at = time.monotonic() + self.settle_s
        self.log.info("Following Ray job %s; its log, from the beginning:", self.submission_id)
        try:
            async with AsyncRayJobsClient(await RayHook(self.ray_conn_id).address_for_trigger()) as client:
                outcome = await self._follow(client)
        except RayJobsError as error:
            outcome = given_up(self.submission_id, self.attempt, f"Ray job {self.submission_id}: {error}")
        except asyncio.CancelledError:
            # An older Airflow cancels a trigger for a kill as for a shutdown: the state of its task tells them apart.
            if not TELLS_OF_KILLS and self.task_instance is not None:
                await self.on_kill()
            raise
        await asyncio.sleep(max(0, settled_at - time.monotonic()))
        yield TriggerEvent({**outcome.payload(), "try_number": self.try_number})

    async def on_kill(self) -> None:
        """Stops the job because a person marked the task failed or succeeded, or cleared it."""
        # Airflow 3.3.2 cancels a trigger again every second until it has ended, on_kill included. So the work is
        # done by an asyncio task of its own, which goes on when this one is cancelled.
        stopping = asyncio.create_task(self._stop_unless_handed_over())
        _STOPPING.add(stopping)
        stopping.add_done_callback(_STOPPING.discard)
        await asyncio.shield(stopping)

    async def _stop_unless_handed_over(self) -> None:
        # Airflow also calls on_kill when another triggerer took the trigger over (apache/airflow#41231): then the
        # task is still deferred, and its job must go on.
        if self.task_instance is not None and await task_state(self.task_instance) == "deferred":
            self.log.info("Another triggerer follows Ray job %s now; it goes on.", self.submission_id)
            return
        self.log.info("The task was killed: stopping Ray job %s.", self.submission_id)
        try:
            async with AsyncRayJobsClient(await RayHook(self.ray_conn_id).address_for_trigger()) as client:
                info = await self._stop(client)
        except RayJobsError as error:
            self.log.error("%s Stop the job by hand: ray job stop %s", error, self.submission_id)
        else:
            self.log.info("Ray job %s: %s", self.submission_id, _after_stop(info))

    @property
    def _stand(self) -> Stand:
        if self.again:
            return Stand.CLEARED
        return Stand.ADOPTED if self.adopted else Stand.OWN

    async def _follow(self, client: AsyncRayJobsClient) -> Outcome:
        """Polls until the job ends, a limit is passed, or Ray stays silent for longer than the patience."""
        poll_s, silent_since, said = FIRST_POLL_S, None, ""
        while True:
            try:
                info = await client.job(self.submission_id)
                silent_since = None
            except RayUnreachable as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > self.patience_s:
                    message = f"Ray job {self.submission_id}: no answer for {self.patience_s:.0f} s. {error} "
                    message += "The job may still run; a retry adopts it."
                    return given_up(self.submission_id, self.attempt, message)
                self.log.warning("%s Trying again for up to %.0f s.", error, self.patience_s)
            else:
                if info is not None and (news := f"{info.status}: {info.message}") != said:
                    self.log.info("Ray job %s is %s", self.submission_id, news)
                    said = news
                if next_step(info.status if info else None, self._stand) is not Step.WAIT:
                    return await self._end(client, info)
                if info is not None and (passed := await self._passed_limit(client, info)):
                    return await self._give_up(client, passed)
                await self._show_log(client)
                if info is not None and info.status == "PENDING":
                    await self._show_queue(client)
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * POLL_GROWTH, self.max_poll_s)

    async def _passed_limit(self, client: AsyncRayJobsClient, info: JobInfo) -> str:
        """Which time limit the job has passed, in words; empty when none."""
        waited_s = time.time() - self.waiting_since_s
        if info.status == "PENDING" and self.queue_timeout_s is not None and waited_s > self.queue_timeout_s:
            what = await self._missing(client) or f"its resources. {info.message.strip()}"
            return f"waiting {self.queue_timeout_s:.0f} s for {what} (its queue_timeout)."
        age_s = waited_s if info.start_time_s is None else time.time() - info.start_time_s
        if self.job_timeout_s is not None and age_s > self.job_timeout_s:
            return f"it did not end within its job_timeout of {self.job_timeout_s:.0f} s."
        return ""

    async def _show_queue(self, client: AsyncRayJobsClient) -> None:
        """Says what a job that waits for long waits for, whenever that changes."""
        if time.monotonic() < self._next_queue_look_at:
            return
        self._next_queue_look_at = time.monotonic() + QUEUE_LOOK_S
        if (what := await self._missing(client)) and what != self._waits_for:
            self.log.info("Ray job %s is waiting for %s", self.submission_id, what)
            self._waits_for = what

    async def _missing(self, client: AsyncRayJobsClient) -> str:
        """What the job waits for, in words; empty when Ray does not say what it has.

        For information only: a gateway that shows the jobs and refuses the nodes fails no task.
        """
        try:
            return waiting_for(self.wanted, await client.node_resources())
        except (RayJobsError, LookupError, TypeError, ValueError, AttributeError) as error:
            self.log.warning("Ray does not say what its nodes have: %s", error)
            return ""

    async def _give_up(self, client: AsyncRayJobsClient, reason: str) -> Outcome:
        """Stops a job that passed a limit. If it succeeded just before the stop, that counts."""
        self.log.warning("Stopping Ray job %s: %s", self.submission_id, reason)
        info = await self._stop(client)
        if info is not None and info.status == "SUCCEEDED":
            return await self._end(client, info)
        message = f"Ray job {self.submission_id}: {reason} {_after_stop(info)}"
        return given_up(self.submission_id, self.attempt, message)

    async def _stop(self, client: AsyncRayJobsClient) -> JobInfo | None:
        """Asks for the stop, again if need be, and returns what Ray says about the job at the end."""
        begin = time.monotonic()
        while True:
            waited_s = time.monotonic() - begin
            try:
                await client.stop(self.submission_id)
                info = await client.job(self.submission_id)
                if info is None or info.status in TERMINAL or waited_s > STOP_WAIT_S:
                    return info
                if info.status == "PENDING" and waited_s > PENDING_STOP_WAIT_S:
                    return info
            except RayUnreachable:
                if waited_s > STOP_WAIT_S:
                    raise
            await asyncio.sleep(FIRST_POLL_S)

    async def _end(self, client: AsyncRayJobsClient, info: JobInfo | None) -> Outcome:
        """Shows the rest of the log and says how the job ended."""
        log = await self._whole_log(client) if info is not None else ""
        await self._show(log, ended=True)
        return outcome_of(info, self._stand, self.submission_id, self.attempt, log)

    async def _whole_log(self, client: AsyncRayJobsClient) -> str:
        """The log of a job that has ended; the node that keeps it may need several calls to answer."""
        deadline = time.monotonic() + min(self.patience_s, 60)
        while True:
            try:
                return await client.log(self.submission_id)
            except RayUnreachable as error:
                if time.monotonic() > deadline:
                    self.log.warning("The log of Ray job %s cannot be read: %s", self.submission_id, error)
                    return ""
            await asyncio.sleep(FIRST_POLL_S)

    async def _show_log(self, client: AsyncRayJobsClient) -> None:
        """Shows the new lines, unless reading the log would take too large a share of the time."""
        begin = time.monotonic()
        if begin < self._next_log_at:
            return
        try:
            log = await client.log(self.submission_id)
        except RayUnreachable:
            return  # the next look at the status says so, if Ray stays silent
        self._next_log_at = begin + (time.monotonic() - begin) / LOG_TIME_SHARE
        await self._show(log, ended=False)

    async def _show(self, log: str, ended: bool) -> None:
        for number, line in enumerate(self._follower.new_lines(log, ended)):
            self.log.info("%s", line)
            if number % 100 == 99:
                await asyncio.sleep(0)


def _after_stop(info: JobInfo | None) -> str:
    """What became of a job that was asked to stop."""
    if info is None or info.status in TERMINAL:
        return "It was stopped." if info is None or info.status == "STOPPED" else f"It had ended as {info.status}."
    if info.status == "PENDING":
        return "It still waits for resources; Ray stops it as soon as it starts."
    return f"Ray has not stopped it yet (it is {info.status}). Stop it by hand: ray job stop {info.submission_id}"

"""Ray's Jobs REST API: five calls, once blocking for the worker and once asynchronous for the triggerer.

Source: the routes of ``ray/dashboard/modules/job/job_head.py`` and the header of
``ray/_private/authentication/http_token_authentication.py`` (Ray 2.60).
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from airflow_ray_jobs.errors import InvalidConnection, InvalidRequest, RayRefused, RayUnreachable

Parsed = TypeVar("Parsed")

TIMEOUT_S = 30.0  # of one call; a head under load takes seconds to accept a job


@dataclass(frozen=True)
class RayAddress:
    """Where the Jobs API is, and the token that opens it (empty for an open cluster).

    With https, ``verify`` says whether the server's certificate is checked, and ``ca_file`` against whose: a PEM file
    on this machine; empty for the certificates that httpx brings.

    Raises :class:`InvalidConnection` when the URL is none of HTTP, or no header can carry the token, which is not
    quoted.
    """

    url: str
    token: str = field(default="", repr=False)
    verify: bool = True
    ca_file: str = ""

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise InvalidConnection("Ray's address is no URL. Mend host and port of its Airflow connection.") from error
        if url.userinfo:
            raise InvalidConnection(
                f"The address of Ray at {url.host} names a user. Ray knows none: put its token into the password of "
                "the Airflow connection, and the host alone into the host."
            )
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidConnection(f"Ray cannot be reached at {self.url}: the schema has to be http or https.")
        if not (self.token.isascii() and self.token.isprintable()):
            raise InvalidConnection(
                f"The token for Ray at {self.url} holds a character that no header can carry: a line break, or one "
                "beyond ASCII. Copy it into the password of the Airflow connection again."
            )


@dataclass(frozen=True)
class JobRequest:
    """One job to submit; resources are those of the entrypoint's own process."""

    submission_id: str
    entrypoint: str
    env_vars: Mapping[str, str]
    metadata: Mapping[str, str]
    num_cpus: float = 0
    num_gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON that ``POST /api/jobs/`` takes."""
        body: dict[str, Any] = {
            "submission_id": self.submission_id,
            "entrypoint": self.entrypoint,
            "runtime_env": {"env_vars": dict(self.env_vars)},
            "metadata": dict(self.metadata),
        }
        wanted = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "resources": dict(self.resources)}
        return body | {f"entrypoint_{name}": value for name, value in wanted.items() if value}


@dataclass(frozen=True)
class JobInfo:
    """What Ray says about a job. ``start_time_s`` is seconds since 1970 by Ray's clock, taken at submission.

    ``message`` is Ray's sentence without the end of the log, which Ray appends to it when a job fails.
    """

    submission_id: str
    status: str
    message: str
    start_time_s: float | None
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> JobInfo:
        """From the JSON of ``GET /api/jobs/{id}``."""
        start_ms = fields.get("start_time")
        return cls(
            submission_id=str(fields.get("submission_id") or ""),
            status=str(fields.get("status") or ""),
            message=str(fields.get("message") or "").partition(", last available logs")[0].strip(),
            start_time_s=None if start_ms is None else float(start_ms) / 1000,
            metadata=fields.get("metadata") or {},
        )


class RayJobsClient:
    """Blocking client. Every call raises :class:`RayUnreachable`, :class:`RayRefused` or :class:`InvalidRequest`."""

    def __init__(self, address: RayAddress, timeout_s: float = TIMEOUT_S) -> None:
        self._address = address
        self._http = httpx.Client(**_settings(address, timeout_s))

    def __enter__(self) -> RayJobsClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def version(self) -> str:
        """Ray's version."""
        return str(_parsed(self._address, self._call("GET", "/api/version"), dict).get("ray_version") or "unknown")

    def submit(self, request: JobRequest) -> None:
        """Submits the job. If a job with this id is already there, it is left as it is: that one is meant.

        An answer that got lost is asked for again with the same id, so it cannot become two jobs.
        """
        try:
            self._call("POST", "/api/jobs/", request.body())
        except RayUnreachable:
            if self.job(request.submission_id) is None:
                raise

    def job(self, submission_id: str) -> JobInfo | None:
        """What Ray knows about the job; None when it knows no such job."""
        response = self._call("GET", _job_path(submission_id))
        return None if response.status_code == 404 else JobInfo.read(_parsed(self._address, response, dict))

    def jobs(self) -> list[JobInfo]:
        """All jobs that Ray remembers, those that were not submitted through the Jobs API left out."""
        listed = _parsed(self._address, self._call("GET", "/api/jobs/"), list)
        found = [JobInfo.read(fields) for fields in listed]
        return [job for job in found if job.submission_id]

    def log(self, submission_id: str) -> str:
        """The whole log of the job so far; empty when the job or its node is gone."""
        response = self._call("GET", _job_path(submission_id) + "/logs")
        if response.status_code == 404:
            return ""
        return str(_parsed(self._address, response, dict).get("logs") or "")

    def stop(self, submission_id: str) -> None:
        """Asks Ray to stop the job: SIGTERM, then SIGKILL after 3 s. Harmless when it has ended or is gone."""
        self._call("POST", _job_path(submission_id) + "/stop")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise _no_answer(self._address, error) from error
        return _checked(self._address, response)


class AsyncRayJobsClient:
    """The calls of :class:`RayJobsClient` that a trigger needs, without blocking the event loop.

    To be used in an ``async with`` block.
    """

    def __init__(self, address: RayAddress, timeout_s: float = TIMEOUT_S) -> None:
        self._address = address
        self._timeout_s = timeout_s

    async def __aenter__(self) -> AsyncRayJobsClient:
        # In a thread: reading certificates would hold up every other trigger.
        self._http = httpx.AsyncClient(**await asyncio.to_thread(_settings, self._address, self._timeout_s))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def job(self, submission_id: str) -> JobInfo | None:
        """See :meth:`RayJobsClient.job`."""
        response = await self._call("GET", _job_path(submission_id))
        return None if response.status_code == 404 else JobInfo.read(_parsed(self._address, response, dict))

    async def log(self, submission_id: str) -> str:
        """See :meth:`RayJobsClient.log`. Parsed in a thread: a log of 100 MB would hold up every other trigger."""
        response = await self._call("GET", _job_path(submission_id) + "/logs")
        if response.status_code == 404:
            return ""
        fields: dict[str, Any] = await asyncio.to_thread(_parsed, self._address, response, dict)
        return str(fields.get("logs") or "")

    async def stop(self, submission_id: str) -> None:
        """See :meth:`RayJobsClient.stop`."""
        await self._call("POST", _job_path(submission_id) + "/stop")

    async def node_resources(self) -> list[dict[str, float]]:
        """What each living node has in total, used or not, by Ray's names (``CPU``, ``GPU``, custom ones)."""
        response = await self._call("GET", "/api/v0/nodes?detail=1&limit=10000")
        nodes = _parsed(self._address, response, dict)["data"]["result"]["result"]
        return [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]

    async def _call(self, method: str, path: str) -> httpx.Response:
        try:
            response = await self._http.request(method, path)
        except httpx.HTTPError as error:
            raise _no_answer(self._address, error) from error
        return _checked(self._address, response)


def _settings(address: RayAddress, timeout_s: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {address.token}"} if address.token else {}
    # Without TLS no proxy of the environment: it would read the token.
    return {
        "base_url": address.url,
        "headers": headers,
        "timeout": timeout_s,
        "verify": _verification(address),
        "trust_env": httpx.URL(address.url).scheme == "https",
    }


def _verification(address: RayAddress) -> ssl.SSLContext | bool:
    if httpx.URL(address.url).scheme != "https":
        return False  # then no certificate is read
    if not (address.verify and address.ca_file):
        return address.verify
    try:
        return ssl.create_default_context(cafile=address.ca_file)
    except OSError as error:
        raise InvalidConnection(
            f"The CA file {address.ca_file} of Ray's connection cannot be used ({error}). It has to be a PEM file that "
            "every Airflow worker and triggerer can read."
        ) from error


# Ray's words; a gateway's "not found" says nothing about a job.
_NO_SUCH_JOB = re.compile(r"\s*Job .* does not exist", re.DOTALL)


def _job_path(submission_id: str) -> str:
    return f"/api/jobs/{quote(submission_id, safe='')}"


def _no_answer(address: RayAddress, error: Exception) -> RayUnreachable:
    return RayUnreachable(f"Ray at {address.url} did not answer ({type(error).__name__}: {error}).")


def _checked(address: RayAddress, response: httpx.Response) -> httpx.Response:
    """The response if it is a success or Ray's "no such job" (404), otherwise the error that it stands for."""
    code = response.status_code
    if code < 300 or (code == 404 and _NO_SUCH_JOB.match(response.text)):
        return response
    said = response.text.strip().splitlines()[-1:] or [response.reason_phrase]
    if code in (401, 403):
        raise RayRefused(
            f"Ray at {address.url} refuses the token ({code}: {said[0][:200]}). "
            "Put the cluster's token into the password of the Airflow connection."
        )
    if code == 400:
        raise InvalidRequest(f"Ray at {address.url} rejects the request: {said[0][:500]}")
    raise RayUnreachable(f"Ray at {address.url} answered {code}: {said[0][:500]}")


def _parsed(address: RayAddress, response: httpx.Response, kind: type[Parsed]) -> Parsed:
    """The JSON of an answer; a gateway that answers in Ray's place says something else, and may be gone soon."""
    try:
        value = response.json()
    except ValueError:
        value = None
    if not isinstance(value, kind):
        begin = " ".join(response.text[:200].split())
        raise RayUnreachable(f"What answered at {address.url} is not Ray's Jobs API; it said: {begin}")
    return value

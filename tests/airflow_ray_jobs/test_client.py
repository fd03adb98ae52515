"""The REST client against a real Ray head."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from airflow_ray_jobs.client import JobRequest, RayAddress, RayJobsClient
from airflow_ray_jobs.errors import InvalidRequest, RayRefused, RayUnreachable
from infra.local.ray_cluster import LocalRay
from tests.airflow_ray_jobs.conftest import wait_for


def request(submission_id: str, entrypoint: str = "true") -> JobRequest:
    return JobRequest(submission_id, entrypoint, env_vars={"COLOUR": "blue"}, metadata={"stage": "embed"})


def test_a_job_from_submission_to_log(client: RayJobsClient) -> None:
    client.submit(request("client-1", "echo colour=$COLOUR"))
    info = wait_for(client, "client-1")
    assert info.status == "SUCCEEDED"
    assert info.metadata["stage"] == "embed"
    assert info.start_time_s is not None
    assert "colour=blue\n" in client.log("client-1")
    assert client.version()


def test_what_ray_does_not_know(client: RayJobsClient) -> None:
    assert client.job("nobody-1") is None
    assert client.log("nobody-1") == ""
    client.stop("nobody-1")


def test_the_same_id_is_the_same_job(client: RayJobsClient) -> None:
    client.submit(request("twice-1", "echo first"))
    client.submit(request("twice-1", "echo second"))
    wait_for(client, "twice-1")
    assert "second" not in client.log("twice-1")


@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_missing_or_wrong_token_is_refused(local_ray: LocalRay, token: str) -> None:
    with RayJobsClient(RayAddress(local_ray.url, token)) as client, pytest.raises(RayRefused, match="password"):
        client.job("a-1")


def test_nobody_listens() -> None:
    with RayJobsClient(RayAddress("http://127.0.0.1:1")) as client, pytest.raises(RayUnreachable):
        client.job("a-1")


def test_a_malformed_request_is_not_repeated(client: RayJobsClient) -> None:
    with pytest.raises(InvalidRequest):
        client.submit(JobRequest("bad-1", 7, {}, {}))  # type: ignore[arg-type]


def test_a_lost_answer_does_not_submit_twice(local_ray: LocalRay) -> None:
    with proxy_that_loses_the_first_answer(local_ray.port) as port:
        with RayJobsClient(RayAddress(f"http://127.0.0.1:{port}", local_ray.token)) as client:
            client.submit(request("lost-answer-1"))
            assert wait_for(client, "lost-answer-1").status == "SUCCEEDED"


@contextmanager
def proxy_that_loses_the_first_answer(port: int) -> Iterator[int]:
    """A TCP proxy in front of ``port``: the first request arrives, its answer never comes back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        lose = True
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=pump, args=(near, far), daemon=True).start()
            if lose:
                far.recv(1)
                near.shutdown(socket.SHUT_RDWR)
                lose = False
            else:
                threading.Thread(target=pump, args=(far, near), daemon=True).start()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()

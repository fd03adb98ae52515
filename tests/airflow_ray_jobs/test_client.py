"""The REST client against a real Ray head."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from airflow_ray_jobs import RayJobTrigger
from airflow_ray_jobs.client import AsyncRayJobsClient, JobInfo, JobRequest, RayAddress, RayJobsClient, _settings
from airflow_ray_jobs.errors import InvalidConnection, InvalidRequest, RayRefused, RayUnreachable
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
    with tcp_proxy(local_ray.port, lose_first_answer=True) as port:
        with RayJobsClient(RayAddress(f"http://127.0.0.1:{port}", local_ray.token)) as client:
            client.submit(request("lost-answer-1"))
            assert wait_for(client, "lost-answer-1").status == "SUCCEEDED"


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of its own authority for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ray")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(secret)
    return folder / "ca.pem", folder / "key.pem"


def test_tls(local_ray: LocalRay, tls_files: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls_files)
    with tcp_proxy(local_ray.port, tls=context) as port:
        behind = RayAddress(f"https://127.0.0.1:{port}", local_ray.token)
        for trusted in (replace(behind, ca_file=str(tls_files[0])), replace(behind, verify=False)):
            with RayJobsClient(trusted) as client:
                assert client.job("nobody-1") is None
            assert asyncio.run(job_without_blocking(trusted)) is None
        with RayJobsClient(behind) as client, pytest.raises(RayUnreachable, match="certificate verify failed"):
            client.job("nobody-1")


async def job_without_blocking(address: RayAddress) -> JobInfo | None:
    async with AsyncRayJobsClient(address) as client:
        return await client.job("nobody-1")


def test_a_ca_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidConnection, match="every Airflow worker and triggerer"):
        RayJobsClient(RayAddress("https://127.0.0.1:1", "t", ca_file=str(tmp_path / "none.pem")))


@pytest.mark.parametrize("url", ["HTTPS://127.0.0.1:1", "https://127.0.0.1:1", "Https://127.0.0.1:1"])
def test_tls_is_checked_however_https_is_written(url: str) -> None:
    assert _settings(RayAddress(url, "t"), 1.0)["verify"] is True


NOT_FOUND = "<html><h1>404 Not Found</h1><p>The page does not exist</html>"


@pytest.mark.parametrize(
    ("code", "text"), [(404, NOT_FOUND), (404, ""), (200, "<html>Sign in</html>"), (200, '"ready"'), (200, "\xff")]
)
def test_a_gateway_that_answers_in_ray_s_place(code: int, text: str) -> None:
    """It says nothing about a job: a lost one would be submitted again."""
    with gateway(code, text) as url, RayJobsClient(RayAddress(url)) as client:
        calls = (client.version, client.jobs, lambda: client.job("a-1"), lambda: client.log("a-1"))
        for call in (
            calls if code == 200 else (*calls, lambda: client.submit(request("a-1")), lambda: client.stop("a-1"))
        ):
            with pytest.raises(RayUnreachable, match=f"{code}|not Ray's Jobs API"):
                call()

        async def without_blocking() -> None:
            async with AsyncRayJobsClient(RayAddress(url)) as slow:
                for call in (slow.job, slow.log):
                    with pytest.raises(RayUnreachable):
                        await call("a-1")

        asyncio.run(without_blocking())


def test_no_such_job_in_ray_s_words() -> None:
    with gateway(404, "Job a-1 does not exist") as url, RayJobsClient(RayAddress(url)) as client:
        assert client.job("a-1") is None
        assert client.log("a-1") == ""
        client.stop("a-1")


@pytest.mark.parametrize(
    ("code", "text"),
    [(401, "no"), (403, "no"), (400, "no"), (404, "no"), (200, "no"), (200, "{}"), (200, '{"data": 1}')],
)
def test_nodes_that_are_not_shown_fail_no_task(code: int, text: str) -> None:
    trigger = RayJobTrigger("r", "a-1", 1, False, 1.0, 0.0, None, None, 1.0, wanted={"CPU": 1})

    async def look(url: str) -> str:
        async with AsyncRayJobsClient(RayAddress(url)) as client:
            return await trigger._missing(client)

    with gateway(code, text) as url:
        assert asyncio.run(look(url)) == ""


@contextmanager
def gateway(code: int, text: str) -> Iterator[str]:
    """An HTTP server that gives one answer to everything."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode("latin-1"))

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def tcp_proxy(port: int, lose_first_answer: bool = False, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A TCP proxy in front of ``port``: it ends TLS, or the first request arrives and its answer never comes back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        lose = lose_first_answer
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            if tls:
                try:
                    near = tls.wrap_socket(near, server_side=True)
                except ssl.SSLError:
                    continue  # a client that does not trust us
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

"""A real S3 server on loopback for tests: OpenStack Swift's S3 API, with signatures, ranges and multipart.

with S3Server() as server:
    server.create_bucket("atlas")
    boto3.client("s3", endpoint_url=server.endpoint_url, ...)
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from damage_atlas.store import Store
from infra.local.processes import LocalService, free_ports

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NODE = Path(__file__).with_name("swift_node.py")
START_LIMIT_S = 60  # a few seconds on an idle machine


class S3Server(LocalService):
    """Swift with its S3 API, in a temporary folder of its own.

    ``stop()`` and ``start()`` keep data, endpoint and keys, so a test can take the store away for a while;
    leaving the context removes everything. Start it from the main thread: it ends with the thread that started
    it.
    """

    region = "us-east-1"
    access_key = "test:tester"  # Swift's form: account:user

    def __init__(self) -> None:
        self.secret_key = secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="s3-server-"))
        self.log = self.folder / "server.log"
        self.ports = free_ports(4)
        self.endpoint_url = f"http://127.0.0.1:{self.ports[0]}"
        self.process: subprocess.Popen[bytes] | None = None

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the server and wait until it answers; RuntimeError with the end of its log if it never does."""
        if self.process is not None:
            raise RuntimeError(f"The S3 server at {self.endpoint_url} is running already; stop() it first.")
        command = [sys.executable, "-W", "ignore", str(NODE), str(self.folder), *map(str, self.ports)]
        env = os.environ | {"SWIFT_ACCESS_KEY": self.access_key, "SWIFT_SECRET_KEY": self.secret_key}
        with self.log.open("ab") as log:
            # A session of its own, so that Ctrl-C reaches the tests and not the server.
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        give_up_at = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                self.stop()
                log_end = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"No S3 server came up at {self.endpoint_url}. Its log ends:\n{log_end}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        """True when the proxy and the servers behind it all accept connections."""
        try:
            for port in self.ports[1:]:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            with urllib.request.urlopen(f"{self.endpoint_url}/healthcheck", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def stop(self) -> None:
        """End the server at once; what it has acknowledged stays on disk. Does nothing when stopped."""
        if self.process is not None:
            self.process.kill()  # its four servers end with it
            self.process.wait()
            self.process = None
            give_up_at = time.monotonic() + 10
            while self._port_taken() and time.monotonic() < give_up_at:
                time.sleep(0.02)

    def _port_taken(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ports[0])) == 0

    def env(self) -> dict[str, str]:
        """The standard AWS variables that lead boto3, and programs started by a test, to this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> S3Client:
        """A boto3 client with this server's keys, whatever the environment says."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}, max_pool_connections=32),
        )

    def create_bucket(self, name: str) -> None:
        """Create an empty bucket; botocore's ClientError when the name is taken."""
        self.client().create_bucket(Bucket=name)


def take_away(server: S3Server, store: Store, once_there: str, seconds: float = 20, limit_s: float = 900) -> None:
    """Stop ``server`` for a while as soon as ``store`` lists anything below ``once_there``."""
    give_up_at = time.monotonic() + limit_s
    while next(store.list(once_there), None) is None:
        assert time.monotonic() < give_up_at, f"nothing came below {once_there}"
        time.sleep(0.2)
    server.stop()
    time.sleep(seconds)
    server.start()

"""A private Ray cluster on this machine: a head and extra worker nodes, each a real raylet. Subprocesses only."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infra.local.processes import (
    LocalService,
    LocalServiceError,
    NotReadyInTime,
    ProcessFamily,
    free_ports,
    uninterrupted,
    wait_until,
)

LOOPBACK = "127.0.0.1"
TRIES = 3


class LocalRay(LocalService):
    """``with LocalRay(root) as ray:`` starts a token-protected cluster on loopback and stops it at the end.

    ``root`` keeps the token and, in ``root/logs``, every node's output and Ray's own session logs.
    ``env`` is added to the environment of the nodes, hence of every job (``PYTHONPATH``, AWS variables).
    ``python`` is the interpreter that has ray, this one by default. Ray looks for a job's programs on the ``PATH`` of
    its nodes: the folder of that Python comes first.
    The ports are chosen when it is made, and stay. Raises :class:`infra.local.processes.LocalServiceError` when the
    nodes are not up within ``timeout_s``.
    """

    def __init__(
        self,
        root: Path,
        nodes: int = 2,
        cpus_per_node: int = 2,
        env: Mapping[str, str] | None = None,
        object_store_bytes: int = 256 * 1024**2,
        timeout_s: float = 240,
        python: str = sys.executable,
    ) -> None:
        self.family = ProcessFamily(root)
        self.python = python
        self.nodes = nodes
        self.cpus_per_node = cpus_per_node
        self.object_store_bytes = object_store_bytes
        self.timeout_s = timeout_s
        self._extra_env = dict(env or {})
        self._token = secrets.token_hex(32)
        self._gcs_port, self.port, self._client_port = free_ports(3)
        self._temp_dir: Path | None = None

    @property
    def url(self) -> str:
        """Address of the dashboard, which serves the Jobs REST API."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def address(self) -> str:
        """Address for ``ray.init`` in a process that has :attr:`client_env`."""
        return f"{LOOPBACK}:{self._gcs_port}"

    @property
    def token(self) -> str:
        """The token that every REST call must send."""
        return self._token

    @property
    def session_logs(self) -> Path:
        """Folder of Ray's own logs, and those of jobs and workers, while it runs."""
        assert self._temp_dir is not None, "it is not running"
        return self._temp_dir / "session_latest" / "logs"

    @property
    def client_env(self) -> dict[str, str]:
        """Variables for a process that talks to this cluster with Ray's own client."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.family.root / "token"),
        }

    @property
    def airflow_env(self) -> dict[str, str]:
        """The variable that gives Airflow the connection ``ray_default``."""
        connection = {"conn_type": "ray", "host": LOOPBACK, "port": self.port, "password": self.token}
        return {"AIRFLOW_CONN_RAY_DEFAULT": json.dumps(connection)}

    def start(self) -> None:
        """Starts all nodes and returns when each is alive and jobs can be submitted."""
        self.family.claim()
        token_file = self.family.root / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(self._token)

        def clear_away() -> None:
            self.family.stop_all()
            self.family.claim()
            self._gcs_port, self.port, self._client_port = free_ports(3)

        self._start_nodes(clear_away)

    def restart(self, away_s: float) -> None:
        """Kills the head and with it every node, as a machine that crashes would; all are back ``away_s`` later.

        Ray forgets its jobs. Addresses and token stay.
        """
        self._kill_all()
        time.sleep(away_s)
        self._start_nodes(self._kill_all)

    def _kill_all(self) -> None:
        for name in self.family.names():
            self.family.stop(name, hard=True)

    def _start_nodes(self, clear_away: Callable[[], None]) -> None:
        # Ray's socket names must stay below 108 characters, so its session cannot lie under a long root.
        self._temp_dir = self._temp_dir or Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        _try(self._start_head, clear_away)
        if self.nodes > 1:
            self._bring_up(2, lambda: self.alive_nodes() > 1)
        for _ in wait_until("Ray's dashboard", self.timeout_s, self.family, poll_s=0.5):
            if self.alive_nodes() > 0:
                break
        # One after the other: all at once, none of them is up within the time that Ray gives it on two cores.
        for number in range(3, self.nodes + 1):
            self.bring_up_worker(number)

    def _start_head(self) -> None:
        """Returns when the head is there for other nodes; its dashboard takes much longer."""
        log = self.family.log_path("ray-head")
        earlier = log.stat().st_size if log.exists() else 0
        self._start_node("ray-head", ["--head", f"--port={self._gcs_port}", f"--dashboard-port={self.port}",
                                      "--include-dashboard=true", f"--dashboard-host={LOOPBACK}",
                                      f"--ray-client-server-port={self._client_port}",
                                      f"--temp-dir={self._temp_dir}"])  # fmt: skip
        for _ in wait_until("Ray's head", self.timeout_s, self.family):
            # Not its port: a node gives the head 30 s between that and its own registration.
            if b"Ray runtime started" in log.read_bytes()[earlier:]:
                return

    def start_worker(self, number: int) -> None:
        """Starts worker node ``number`` (2 or more) without waiting for it."""
        self._start_node(f"ray-node-{number}", [f"--address={self.address}", "--include-log-monitor=false"])

    def kill_node(self, number: int) -> None:
        """Kills worker node ``number`` at once, as a machine that vanishes would (for trials of crashes)."""
        self.family.stop(f"ray-node-{number}", hard=True)

    def bring_up_worker(self, number: int) -> None:
        """Starts worker node ``number`` and returns when it is alive; one that ends while it starts is started again.

        Raises:
            LocalServiceError: it does not come up.
        """
        before = self._alive()
        self._bring_up(number, lambda: bool(self._alive() - before))

    def _bring_up(self, number: int, is_there: Callable[[], bool]) -> None:
        def begin() -> None:
            self.start_worker(number)
            for _ in wait_until(f"Ray node {number}", self.timeout_s, self.family, poll_s=0.5):
                if is_there():
                    return

        _try(begin)

    def alive_nodes(self) -> int:
        """How many nodes the head believes alive; 0 when it does not answer."""
        return len(self._alive())

    def _alive(self) -> set[str]:
        summary = (self._get("/nodes?view=summary") or {}).get("data", {}).get("summary", [])
        raylets = [node.get("raylet", {}) for node in summary]
        return {raylet["nodeId"] for raylet in raylets if raylet.get("state") == "ALIVE"}

    def stop(self) -> None:
        """Stops every node and job, and keeps Ray's session logs in ``root/logs/session``."""
        with uninterrupted():
            self.family.stop_all()
            if self._temp_dir is not None:
                kept = self.family.log_dir / "session"
                shutil.rmtree(kept, ignore_errors=True)
                with contextlib.suppress(OSError, shutil.Error):
                    shutil.copytree(self.session_logs, kept, dirs_exist_ok=True)
                shutil.rmtree(self._temp_dir, ignore_errors=True)
                self._temp_dir = None

    def _start_node(self, name: str, arguments: list[str]) -> None:
        ports = dict(zip(
            ("--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--metrics-export-port",
             "--runtime-env-agent-port", "--node-manager-port", "--object-manager-port"),
            free_ports(6), strict=True,
        ))  # fmt: skip
        argv = [self.python, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={LOOPBACK}",
                f"--num-cpus={self.cpus_per_node}", f"--object-store-memory={self.object_store_bytes}",
                "--disable-usage-stats", *arguments, *(f"{key}={port}" for key, port in ports.items())]  # fmt: skip
        self.family.start(name, argv, self._node_env())

    def _node_env(self) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        path = [str(Path(self.python).parent), os.environ.get("PATH", os.defpath)]
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.family.root / "token")}
        # A cold start on two busy cores takes longer than the default of 15 s for a node's agents.
        patience = {"RAY_agent_register_timeout_ms": "100000"}
        return {
            **env,
            **patience,
            "PATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
            **self._extra_env,
            **token,
        }

    def _get(self, path: str) -> dict[str, Any] | None:
        """JSON of a GET on the dashboard, or None while it does not answer."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=5) as response:
                return dict(json.load(response))
        except (OSError, ValueError):
            return None


def _try(start: Callable[[], None], before_again: Callable[[], None] = lambda: None) -> None:
    """Ray gives its own processes 30 s to find each other, which busy cores do not always manage."""
    for remaining in reversed(range(TRIES)):
        try:
            start()
            return
        except NotReadyInTime:
            raise
        except LocalServiceError:
            if remaining == 0:
                raise
            before_again()

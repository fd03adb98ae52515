"""A real Prometheus for tests, and promtool: Debian's, unpacked into .tools/ when they are not installed; an exporter.

with Prometheus(folder, config) as prometheus:
    prometheus.wait_for('up{job="atlas"} == 1')
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from damage_atlas.store import Store
from infra.local.processes import LocalService, ProcessFamily, free_ports, wait_until

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools"
INSTALL_LIMIT_S = 300


@cache
def find_tool(name: str) -> Path:
    """``prometheus`` or ``promtool``: what is installed, else Debian's package, unpacked; else the test is skipped.

    Unpacked, because installing it would start a server on this machine.
    """
    if found := shutil.which(name):
        return Path(found)
    unpacked = TOOLS / "usr" / "bin" / name
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not unpacked.exists() and shutil.which("apt-get") and shutil.which("dpkg"):
            for command in (["apt-get", "update"], ["apt-get", "download", "prometheus"]):
                subprocess.run(command, cwd=TOOLS, timeout=INSTALL_LIMIT_S, capture_output=True, check=False)
            for package in TOOLS.glob("prometheus_*.deb"):
                subprocess.run(["dpkg", "-x", package, TOOLS], timeout=60, check=True)
                package.unlink()
    if unpacked.exists():
        return unpacked
    pytest.skip(f"{name} is missing: run `sudo apt-get install prometheus`, then this test again.")


def promtool(*arguments: str | Path, stdin: str | None = None) -> str:
    """What promtool says; fails the test when it objects."""
    command = [str(find_tool("promtool")), *map(str, arguments)]
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    return said


class Exporter(LocalService):
    """`damage-atlas metrics --listen` in a process of its own, at ``target``; looks at the store twice a second."""

    def __init__(self, folder: Path, store: Store, archives: Path | None = None) -> None:
        self.family = ProcessFamily(folder)
        self.target = f"127.0.0.1:{free_ports(1)[0]}"
        self._argv = [sys.executable, "-c", "from damage_atlas.cli import main; main()", "metrics", "--every", "0.5",
                      "--store", store.root, "--listen", self.target]  # fmt: skip
        self._argv += ["--archives", str(archives)] if archives else []

    def start(self) -> None:
        """Start it; it answers after a second or two."""
        self.family.claim()
        self.family.start("exporter", self._argv, os.environ)

    def stop(self) -> None:
        """Stop it."""
        self.family.stop_all()


class Prometheus(LocalService):
    """Prometheus on loopback with its own data; ``config`` is its configuration file as a document."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.family = ProcessFamily(folder)
        self.config = config
        self.url = f"http://127.0.0.1:{free_ports(1)[0]}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.family.claim()
        file = self.family.root / "prometheus.yml"
        file.write_text(yaml.safe_dump(self.config))
        data = self.family.root / "data"
        argv = [str(find_tool("prometheus")), f"--config.file={file}", f"--storage.tsdb.path={data}",
                f"--web.listen-address={self.url.removeprefix('http://')}"]  # fmt: skip
        self.family.start("prometheus", argv, os.environ)
        for _ in wait_until("Prometheus", 60, self.family):
            try:
                self._get("/-/ready")
                return
            except OSError:
                continue

    def stop(self) -> None:
        """Stop it."""
        self.family.stop_all()

    def reload(self) -> None:
        """Read configuration and rules again."""
        os.kill(self.family.pid("prometheus"), signal.SIGHUP)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that the expression gives now; fails the test with Prometheus' words when it is not valid."""
        return list(self._api("query", {"query": expression})["result"])

    def values(self, expression: str, label: str = "") -> dict[str, float]:
        """Value of each series by one of its labels."""
        return {each["metric"].get(label, ""): float(each["value"][1]) for each in self.query(expression)}

    def wait_for(self, expression: str, timeout_s: float = 60) -> list[dict[str, Any]]:
        """Wait until the expression gives something."""
        for _ in wait_until(expression, timeout_s, self.family, poll_s=0.3):
            if found := self.query(expression):
                return found
        raise AssertionError

    def wait_for_alert(self, name: str, firing: bool, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until the alert fires, or until it does not any more; returns it as Prometheus shows it."""
        deadline = time.monotonic() + timeout_s
        while True:
            alerts = [a for a in self._api("alerts")["alerts"] if a["labels"]["alertname"] == name]
            found = next((alert for alert in alerts if alert["state"] == "firing"), None)
            if (found is not None) == firing:
                return found or {}
            if time.monotonic() > deadline:
                raise AssertionError(f"{name} is {'firing still' if found else f'not firing: {alerts}'}")
            time.sleep(0.3)

    def _api(self, path: str, parameters: dict[str, str] | None = None) -> dict[str, Any]:
        try:
            answer = self._get(f"/api/v1/{path}?{urllib.parse.urlencode(parameters or {})}")
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        return dict(json.loads(answer)["data"])

    def _get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + path, timeout=10) as answer:
            return bytes(answer.read())


def hurried(document: Any, factor: int = 60) -> Any:
    """A rule file or an expression in which every duration is ``factor`` times shorter: minutes become seconds."""
    if isinstance(document, dict):
        return {
            key: _shorter(value, factor) if key in ("for", "interval") else hurried(value, factor)
            for key, value in document.items()
        }
    if isinstance(document, list):
        return [hurried(each, factor) for each in document]
    if isinstance(document, str):
        return re.sub(r"\[(\w+)\]", lambda match: f"[{_shorter(match[1], factor)}]", document)
    return document


def _shorter(duration: str, factor: int) -> str:
    seconds = int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]
    return f"{max(seconds * 1000 // factor, 1000)}ms"

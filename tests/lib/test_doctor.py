"""The doctor on answers of every kind: what is well, what is not, what it must not tell anybody.

That it finds a real Ray, a real Airflow and a real S3 server well, or not, is tested beside these.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from damage_atlas.cli import main
from damage_atlas.doctor import Finding, examine, install
from damage_atlas.doctor.http import ray_place
from damage_atlas.errors import InputError
from damage_atlas.store import Store

HEALTHY = {name: {"status": "healthy"} for name in ("metadatabase", "scheduler", "dag_processor", "triggerer")}
SECRET = "a-token-nobody-may-see"


@dataclass
class Answers:
    """What a server on loopback says: by path, its status and its document; with the date of its clock."""

    says: dict[str, tuple[int, Any]] = field(default_factory=dict)
    token: str | None = None
    ahead_s: float = 0
    moved_to: str | None = None
    heard: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Callable[..., Answers]]:
    running: list[ThreadingHTTPServer] = []

    def start(**settings: Any) -> Answers:
        answers = Answers(**settings)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sent = self.headers.get("Authorization", "")
                answers.heard.append(sent)
                status, document = answers.says.get(self.path, (404, "nothing here"))
                if answers.token is not None and sent != f"Bearer {answers.token}":
                    status, document = 401, "unauthorized"
                if answers.moved_to:
                    self.send_response_only(302)
                    self.send_header("Location", answers.moved_to)
                    self.end_headers()
                    return
                self.send_response_only(status)
                self.send_header("Date", formatdate(time.time() + answers.ahead_s, usegmt=True))
                self.end_headers()
                self.wfile.write(document.encode() if isinstance(document, str) else json.dumps(document).encode())

        httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(httpd)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        answers.url = f"http://127.0.0.1:{httpd.server_port}"
        return answers

    yield start
    for httpd in running:
        httpd.shutdown()
        httpd.server_close()


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("RAY_", "AIRFLOW", "DAMAGE_ATLAS_STORE")):
            monkeypatch.delenv(name)


def ray(version: Any = "2.60.0") -> dict[str, tuple[int, Any]]:
    return {"/api/version": (200, {"ray_version": version}), "/api/jobs/": (200, [])}


def airflow(version: Any = "3.3.2", **health: Any) -> dict[str, tuple[int, Any]]:
    return {"/api/v2/version": (200, {"version": version}), "/api/v2/monitor/health": (200, HEALTHY | health)}


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def test_all_is_well(server: Callable[..., Answers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    head = server(says=ray(), token=SECRET)
    findings = examine(str(tmp_path), head.url, server(says=airflow()).url)
    assert [finding for finding in findings if finding.state == "bad"] == []
    assert {finding.check for finding in findings} == {"python", "install", "gpu", "store", "ray", "airflow", "clock"}
    assert [f.state for f in of(findings, "clock")] == ["ok", "ok"]
    assert all(finding.mend for finding in findings if finding.state == "bad")
    assert list(Store(tmp_path).list()) == [], "what it has created is deleted"


def test_nothing_given_is_skipped_not_well() -> None:
    findings = examine()
    assert [f.state for check in ("store", "ray", "airflow", "clock") for f in of(findings, check)] == ["skipped"] * 4


@pytest.mark.parametrize(
    ("says", "token", "told"),
    [
        (ray(), "another", "refuses our token"),
        (ray("1.13.0"), None, "is 1.13.0; >=2.55 is needed"),
        (ray("a version"), None, "a version; >=2.55"),
        (ray(7), None, "is not Ray's dashboard"),
        ({"/api/version": (200, "<html>"), "/api/jobs/": (200, [])}, None, "is not Ray's dashboard"),
        ({"/api/version": (200, ["a", "list"])}, None, "is not Ray's dashboard (status 404)"),
    ],
)
def test_ray_that_is_not_well(
    says: dict[str, Any], token: str | None, told: str, server: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    (finding,) = of(examine(ray=server(says=says, token=token).url), "ray")
    assert (finding.state, told in finding.says, bool(finding.mend)) == ("bad", True, True), finding


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (airflow(triggerer={"status": "unhealthy"}), "triggerer (unhealthy)"),
        (airflow(triggerer={"status": None}, dag_processor={}), "dag_processor (not running), triggerer (not running)"),
        (airflow(scheduler="broken"), "scheduler (not running)"),
        (airflow("2.11.0"), "is 2.11.0; <3.4,>=3.3 is needed"),
        ({"/api/v2/version": (200, {"version": "3.3.2"})}, "is not Airflow's API (status 404)"),
        ({"/api/v2/version": (200, "<html>"), "/api/v2/monitor/health": (200, "[]")}, "is not Airflow's API"),
    ],
)
def test_airflow_that_is_not_well(says: dict[str, Any], told: str, server: Callable[..., Answers]) -> None:
    (finding,) = of(examine(airflow=server(says=says).url), "airflow")
    assert (finding.state, told in finding.says, bool(finding.mend)) == ("bad", True, True), finding


def test_nobody_there() -> None:
    findings = examine(ray="http://127.0.0.1:9", airflow="http://127.0.0.1:9")
    assert all("does not answer" in f.says and f.state == "bad" for f in of(findings, "ray") + of(findings, "airflow"))


@pytest.mark.parametrize(("ahead_s", "told"), [(100, " s ahead of ours"), (-100, "behind ours"), (3, None), (-3, None)])
def test_clocks(ahead_s: float, told: str | None, server: Callable[..., Answers]) -> None:
    (finding,) = of(examine(airflow=server(says=airflow(), ahead_s=ahead_s).url), "clock")
    assert finding.state == ("bad" if told else "ok") and (told or "clock is ours") in finding.says


def test_a_token_goes_to_its_own_ray_alone(server: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch) -> None:
    thief = server(says=ray())
    mover = server(says=ray(), moved_to=thief.url + "/api/version")
    connection = {"conn_type": "ray", "host": "127.0.0.1", "port": int(mover.url[-5:]), "password": SECRET}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", json.dumps(connection))
    for address in (None, thief.url):  # it redirects; and an address that is not the connection's
        findings = examine(ray=address)
        assert SECRET not in str(findings)
    assert SECRET in str(mover.heard) and SECRET not in str(thief.heard)


@pytest.mark.parametrize(
    ("connection", "url"),
    [
        ('{"conn_type": "ray", "host": "ray-head", "password": "T"}', "http://ray-head:8265"),
        ('{"host": "https://ray.example", "port": 443, "password": "T"}', "https://ray.example:443"),
        (
            '{"host": "ray-head", "port": 1, "schema": "HTTPS", "password": " T\\n", "extra": "{}"}',
            "https://ray-head:1",
        ),
        ("ray://:T@ray-head:8265", "http://ray-head:8265"),
        ("ray://:T@ray-head:8265/https", "https://ray-head:8265"),
    ],
)
def test_connections(connection: str, url: str) -> None:
    place = ray_place(None, {"AIRFLOW_CONN_RAY_DEFAULT": connection})
    assert place is not None and (place.url, place.token) == (url, "T")


@pytest.mark.parametrize(
    "env",
    [
        {"AIRFLOW_CONN_RAY_DEFAULT": '{"password": "a-token-nobody-may-see"}'},
        {"AIRFLOW_CONN_RAY_DEFAULT": '{"password": "a-token-nobody-may-see", '},
        {"AIRFLOW_CONN_RAY_DEFAULT": "ray://a-token-nobody-may-see:x@"},
        {"AIRFLOW_CONN_RAY_DEFAULT": "[]"},
        {"RAY_API_SERVER_ADDRESS": "http://me:a-token-nobody-may-see@ray:8265"},
        {"RAY_API_SERVER_ADDRESS": "ray-head:8265"},
        {"RAY_AUTH_TOKEN_PATH": "/nowhere/token"},
    ],
)
def test_settings_that_cannot_be_read_are_refused_without_their_secret(env: Mapping[str, str]) -> None:
    with pytest.raises(InputError) as refused:
        assert ray_place(None, env) is not None
        ray_place("http://127.0.0.1", env)
    assert SECRET not in refused.value.message


def test_a_store_without_put_if_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ignores the condition: every put succeeds."""
    monkeypatch.setattr(Store, "create", lambda self, key, data: _overwrite(tmp_path / key, data))
    bad = [f for f in of(examine(str(tmp_path)), "store") if f.state == "bad"]
    assert len(bad) == 1 and "8 of 8" in bad[0].says and "If-None-Match" in bad[0].mend


def _overwrite(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize("place", ["none", "file/below"])
def test_a_store_that_is_not_there(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = of(examine(str(tmp_path / place)), "store")
    assert finding.state == "bad" and "is not there" in finding.says


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "checks").touch()  # where a folder is needed
    (finding,) = of(examine(str(tmp_path)), "store")
    assert finding.state == "bad" and "cannot be written" in finding.says


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ({"torch": None, "pillow": "1.0"}, None),  # the thin image: the extra is not meant to be there
        ({"pillow": "1.0"}, "pillow 1.0 (>=12 is needed)"),
        ({"simplejpeg": None}, "simplejpeg is missing (>=1.8 is needed)"),
        ({"boto3": None}, "boto3 is missing"),
        ({"faiss-gpu": "1.15.1"}, "both installed"),
        ({"faiss-cpu": None}, "FAISS is missing"),
        ({"airflow-ray-jobs": None}, "without its bridge"),
        ({"apache-airflow": "2.11.0"}, "apache-airflow 2.11.0 (<3.4,>=3.3 is needed)"),
    ],
)
def test_installations(versions: dict[str, str | None], told: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = install.version_of
    monkeypatch.setattr(install, "version_of", lambda name: versions[name] if name in versions else installed(name))
    bad = [finding for finding in install.check_install() if finding.state == "bad"]
    assert [told in finding.says for finding in bad] == ([True] if told else []), bad


@pytest.mark.parametrize(
    ("driver", "torch", "faiss_gpu", "state"),
    [
        (False, "2.13.0+cpu", None, "skipped"),
        (True, None, None, "skipped"),
        (True, "2.13.0+cpu", None, "bad"),
        (True, "2.13.0", None, "bad"),
        (True, "2.13.0+cpu", "1.15.1", "bad"),
        (True, "2.13.0", "1.15.1", "ok"),
    ],
)
def test_a_gpu_that_lies_idle(
    driver: bool, torch: str | None, faiss_gpu: str | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    monkeypatch.setattr(install.Path, "exists", lambda path: False)
    monkeypatch.setattr(install, "version_of", {"torch": torch, "faiss-gpu": faiss_gpu}.get)
    (finding,) = install.check_gpu()
    assert finding.state == state and bool(finding.mend) is (state == "bad")


def test_exit_codes_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for store, code in ((tmp_path, 0), (tmp_path / "none", 1)):
        monkeypatch.setattr(sys, "argv", ["damage-atlas", "doctor", "--store", str(store), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        document = json.loads(capsys.readouterr().out)
        assert (ended.value.code or 0, document["ok"]) == (code, code == 0)
        assert set(document["findings"][0]) == {"check", "state", "says", "mend"}
    monkeypatch.setattr(sys, "argv", ["damage-atlas", "doctor", "--store", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        main()
    assert "-> Create it, or mount it." in capsys.readouterr().out


def test_it_imports_neither_ray_nor_airflow_nor_torch(tmp_path: Path) -> None:
    code = "import sys; from damage_atlas.doctor import examine; examine(sys.argv[1]); print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"ray", "airflow", "torch", "faiss", "airflow_ray_jobs"} & set(shown.stdout.split())

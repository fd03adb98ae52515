"""Nothing that `infra.local` starts survives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from airflow_ray_jobs.client import JobRequest, RayJobsClient
from infra.local.postgres import DATABASE, LOOPBACK, USER, LocalPostgres, programs
from infra.local.processes import LocalServiceError, ProcessFamily
from infra.local.ray_cluster import LocalRay
from tests.airflow_ray_jobs.conftest import REPOSITORY, wait_for

# A child with a child in a session of its own, which ignores SIGTERM: what Ray's and Airflow's workers do at worst.
STUBBORN = """
import os, signal, subprocess, sys, time
if len(sys.argv) == 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[1], "grandchild"], start_new_session=True)
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""
OWNER = """
import sys, time
from pathlib import Path
from infra.local.processes import ProcessFamily, terminate_as_exit
family = ProcessFamily(Path(sys.argv[1]))
family.claim()
with terminate_as_exit():
    try:
        family.start("stubborn", [sys.executable, sys.argv[2], sys.argv[3]], {})
        time.sleep(600)
    finally:
        family.stop_all(grace_s=1)
"""


@pytest.fixture
def stubborn(tmp_path: Path) -> Path:
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    return script


def pid_in(path: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.1)
    raise AssertionError(f"{path} was not written")


def owner(root: Path, stubborn: Path, pid_file: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", OWNER, str(root), str(stubborn), str(pid_file)]
    return subprocess.Popen(
        argv,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        # Tests that were started in the background of a shell inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_stop_all_reaches_grandchildren(tmp_path: Path, stubborn: Path) -> None:
    family = ProcessFamily(tmp_path / "root")
    family.start("stubborn", [sys.executable, str(stubborn), str(tmp_path / "pid")], {})
    pid = pid_in(tmp_path / "pid")
    family.stop_all(grace_s=1)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_owner_stops_all(tmp_path: Path, stubborn: Path, number: signal.Signals) -> None:
    process = owner(tmp_path / "root", stubborn, tmp_path / "pid")
    pid = pid_in(tmp_path / "pid")
    process.send_signal(number)
    process.wait(30)
    assert not psutil.pid_exists(pid)


def test_the_next_owner_stops_what_a_killed_one_left(tmp_path: Path, stubborn: Path) -> None:
    process = owner(tmp_path / "root", stubborn, tmp_path / "pid")
    pid = pid_in(tmp_path / "pid")
    family = ProcessFamily(tmp_path / "root")
    with pytest.raises(LocalServiceError, match="is in use by process"):
        family.claim()
    process.kill()
    process.wait()
    assert psutil.pid_exists(pid)
    family.claim()
    assert not psutil.pid_exists(pid)


def test_a_dead_child_is_reported_with_its_log(tmp_path: Path) -> None:
    family = ProcessFamily(tmp_path / "root")
    with pytest.raises(LocalServiceError, match=r"broken ended with exit code 3.*broken\.log.*\n.*no disk"):
        family.run("broken", [sys.executable, "-c", "print('no disk'); raise SystemExit(3)"], {}, timeout_s=30)


def test_a_postgres_that_knows_its_user_alone_and_leaves_nothing(tmp_path: Path) -> None:
    try:
        psql = programs() / "psql"
    except LocalServiceError:
        pytest.skip("PostgreSQL is not installed here")
    ask = [str(psql), "-h", LOOPBACK, "-U", USER, "-d", DATABASE, "-tAc", "select 6 * 7", "-p"]
    with LocalPostgres(tmp_path) as postgres:
        password = postgres.url.partition(f"{USER}:")[2].partition("@")[0]
        for given, output, code in ((password, "42\n", 0), ("another", "", 2)):
            env = {**os.environ, "PGPASSWORD": given}
            done = subprocess.run([*ask, str(postgres.port)], env=env, capture_output=True, text=True, check=False)
            assert (done.stdout, done.returncode) == (output, code), done.stderr
        data = postgres.data
        server = postgres.family.pid("postgres")
        assert data.is_dir()
    assert not data.exists() and not psutil.pid_exists(server)


def test_a_ray_that_crashed_is_back_at_its_address_and_has_forgotten(
    local_ray: LocalRay, client: RayJobsClient
) -> None:
    nap = ["sleep", f"6{os.getpid()}"]  # nobody else's
    client.submit(JobRequest("before", " ".join(nap), {}, {}))
    wait_for(client, "before", "RUNNING")
    local_ray.restart(away_s=0)
    assert client.job("before") is None and local_ray.alive_nodes() == 2
    client.submit(JobRequest("after", "echo there", {}, {}))
    assert wait_for(client, "after").status == "SUCCEEDED"
    assert not [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[-2:] == nap]

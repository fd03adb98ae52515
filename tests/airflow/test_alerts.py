"""The last task of a DAG on a real Airflow: alerts reach notifiers and become an asset event; quiet runs send none."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from damage_atlas.report import write_report
from damage_atlas.spec import ArchiveSpec, NotifierSpec, dump_yaml
from tests.lib.report.synthetic_run import Scene, make_run

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
MESSAGE = "{{ alert_subject }}|{{ alert_text }}|{{ alerts[0].kind }}|{{ dag.dag_id }}"
# DAGs of the alert task alone; nobody waits between tries.
DAGS = """
from datetime import timedelta

from airflow.sdk import DAG
from atlas_flow import DEFAULTS, alert_task, archives

at_once = DEFAULTS | {"retry_delay": timedelta(0)}
for archive in archives():
    with DAG(dag_id=f"told_{archive.archive}", schedule=None, default_args=at_once) as dag:
        alert_task(archive, "{{ dag_run.conf['run'] }}")
    globals()[dag.dag_id] = dag
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an Airflow with an empty database, and archives with and without a broken notifier."""
    root = tmp_path_factory.mktemp("airflow")
    (root / "archives").mkdir()
    good = NotifierSpec(
        notifier="tests.support.notifier:FileNotifier",
        arguments={"path": str(root / "sent.txt"), "message": MESSAGE},
    )
    broken = NotifierSpec(notifier="tests.support.notifier:BrokenNotifier")
    missing = NotifierSpec(notifier="no.such.module:Notifier")
    for name, notifiers in {"good": [good], "broken": [broken, good], "missing": [missing], "silent": []}.items():
        spec = ArchiveSpec(archive=name, images="x", model="x", notifiers=notifiers)
        (root / "archives" / f"{name}.yaml").write_text(dump_yaml(spec))
    environment = os.environ | {
        "AIRFLOW_HOME": str(root),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(root / "dags"),
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("lib", ".", "dags")),
        "DAMAGE_ATLAS_ARCHIVES": str(root / "archives"),
    }
    (root / "dags").mkdir()
    (root / "dags" / "told.py").write_text(DAGS)
    airflow(environment, "db", "migrate")
    return environment


def airflow(environment: dict[str, str], *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "airflow", *arguments], env=environment, cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return result.stdout + result.stderr


def tell(home: dict[str, str], archive: str, run_uri: str) -> tuple[str, str]:
    """What became of the alert task, and what was logged."""
    log = airflow(home, "dags", "test", f"told_{archive}", "--conf", json.dumps({"run": run_uri}))
    with sqlite3.connect(Path(home["AIRFLOW_HOME"]) / "airflow.db") as database:
        query = "SELECT state FROM task_instance WHERE dag_id = ? ORDER BY start_date DESC"
        states = database.execute(query, (f"told_{archive}",)).fetchall()
    assert states, log[-5000:]
    return states[0][0], log


def events(home: dict[str, str]) -> list[tuple[str, dict[str, object]]]:
    with sqlite3.connect(Path(home["AIRFLOW_HOME"]) / "airflow.db") as database:
        query = "SELECT asset.name, asset_event.extra FROM asset_event JOIN asset ON asset.id = asset_event.asset_id"
        return [(name, json.loads(extra)) for name, extra in database.execute(query)]


def sent(home: dict[str, str]) -> list[str]:
    file = Path(home["AIRFLOW_HOME"]) / "sent.txt"
    return file.read_text().split("\n---\n")[:-1] if file.exists() else []


def test_alerts_are_sent_and_quiet_runs_send_nothing(home: dict[str, str], tmp_path: Path) -> None:
    loud = make_run(tmp_path / "loud", Scene(images=60, clusters=5))
    quiet = make_run(tmp_path / "quiet", Scene(images=60, clusters=5, previous=False))
    write_report(loud), write_report(quiet)

    assert tell(home, "good", quiet.uri)[0] == "skipped"
    assert sent(home) == [] and events(home) == []

    assert tell(home, "good", loud.uri)[0] == "success"
    (message,) = sent(home)
    subject, text, kind, dag = message.split("|")
    assert subject == "good version 2: 1 alert" and (kind, dag) == ("born", "told_good")
    assert "A new cluster on bridge-" in text and "Look first at" in text and text.endswith("report/index.html")
    ((name, extra),) = events(home)
    assert name == "damage_alerts_good" and extra["version"] == 2 and extra["run"] == loud.uri
    assert extra["alerts"][0]["kind"] == "born"  # type: ignore[index]

    state, log = tell(home, "broken", loud.uri)
    assert state in ("failed", "up_for_retry") and "the mail server is away" in log
    assert len(sent(home)) == 4, "the other notifier was asked all the same, at each of three tries"
    assert tell(home, "silent", loud.uri)[0] == "success" and events(home)[-1][0] == "damage_alerts_silent"

    state, log = tell(home, "missing", loud.uri)
    assert state in ("failed", "up_for_retry") and "no.such.module:Notifier cannot be used" in log

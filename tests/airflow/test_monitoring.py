"""Airflow, Ray and ours in a real Prometheus: every question of the dashboard is answered after runs, and every alert
about Airflow and Ray fires and resolves. Durations in the rules are a fifteenth of what they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from damage_atlas.spec import with_overrides
from damage_atlas.store import Run, Store, start_run
from infra.local.airflow import LocalAirflow
from infra.local.processes import ProcessFamily, free_ports
from infra.local.ray_cluster import LocalRay
from tests.architecture.repository import ROOT, read
from tests.support.dashboard import expressions, panels
from tests.support.line import LONG
from tests.support.prometheus import Exporter, Prometheus, hurried
from tests.support.published import publish_small

pytestmark = [mark for mark in LONG if mark.name != "s3"]

FASTER = 15
LOGS = {"DAMAGE_ATLAS_LOG": "json"}
TOGGLE = """
from datetime import timedelta
from pathlib import Path
from airflow.sdk import dag, task

@dag(schedule=None, catchup=False)
def toggle():
    @task(retries=0, execution_timeout=timedelta(minutes=1))
    def work():
        if Path({fail!r}).exists():
            raise ValueError("as asked")
    work()

toggle()
"""
WORKERS = """
import sys
from damage_atlas.store import Run
from workers import catalog, train
from workers.job import about
from workers.logs import log_to_stdout
run = Run.load(sys.argv[1])
for stage in (catalog, train):
    log_to_stdout(about(run, stage.__name__.split(".")[1]))
    stage.work(run)
"""
METRICS = {
    name: value
    for name, value in yaml.safe_load(read("docker-compose.yml"))["x-airflow"]["environment"].items()
    if name.startswith("AIRFLOW__METRICS__")
}


class Watched(SimpleNamespace):
    """What runs: ray, airflow, prometheus, family (the StatsD page), and folders."""

    ray: LocalRay
    airflow: LocalAirflow
    prometheus: Prometheus
    folder: Path
    runs: list[Run]

    def name_ray(self) -> None:
        """Tell Prometheus where Ray's nodes are, as Ray says it to Prometheus."""
        request = urllib.request.Request(
            f"{self.ray.url}/api/prometheus/sd", headers={"Authorization": f"Bearer {self.ray.token}"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
            targets = [target for group in json.load(answer) for target in group["targets"]]
        (self.folder / "ray.json").write_text(json.dumps([{"targets": targets}]))

    def write_rules(self, *replaced: tuple[str, str]) -> None:
        text = read("infra/prometheus/alerts.yml")
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        (self.folder / "alerts.yml").write_text(yaml.safe_dump(hurried(yaml.safe_load(text), FASTER)))

    def toggle(self, fail: bool) -> str:
        """Run the DAG ``toggle`` once."""
        marker = self.folder / "fail"
        marker.touch() if fail else marker.unlink(missing_ok=True)
        return self.airflow.wait_for_run("toggle", self.airflow.trigger("toggle"), timeout_s=120)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "dags").mkdir()
    (folder / "dags" / "toggle.py").write_text(TOGGLE.format(fail=str(folder / "fail")))
    runs = publish_small(folder)
    statsd, page = free_ports(2)
    family = ProcessFamily(folder / "statsd")
    family.claim()
    script = ROOT / "infra" / "prometheus" / "airflow_statsd.py"
    env = {**METRICS, "AIRFLOW__METRICS__STATSD_ON": "True", "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
           "AIRFLOW__METRICS__STATSD_PORT": str(statsd), "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
           "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5"}  # fmt: skip
    python_path = os.pathsep.join([str(ROOT), str(ROOT / "lib")])
    try:
        family.start("statsd", [sys.executable, str(script), f"127.0.0.1:{statsd}", f"127.0.0.1:{page}"], os.environ)
        with (
            LocalRay(folder / "ray", nodes=1, cpus_per_node=2, env=LOGS | {"PYTHONPATH": python_path}) as ray,
            LocalAirflow(folder / "airflow", folder / "dags", env=env) as airflow,
            Exporter(folder / "exporter", runs[-1].store) as exporter,
        ):
            config = {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(folder / "alerts.yml")],
                "scrape_configs": [
                    {"job_name": "atlas", "static_configs": [{"targets": [exporter.target]}]},
                    {"job_name": "airflow", "static_configs": [{"targets": [f"127.0.0.1:{page}"]}]},
                    {"job_name": "ray", "file_sd_configs": [
                        {"files": [str(folder / "ray.json")], "refresh_interval": "1s"}]},
                ],
            }  # fmt: skip
            prometheus = Prometheus(folder / "prometheus", config)
            watched = Watched(ray=ray, airflow=airflow, prometheus=prometheus, folder=folder, runs=runs)
            watched.name_ray()
            watched.write_rules()
            with prometheus:
                airflow.wait_for_dags({"toggle"})
                yield watched
    finally:
        family.stop_all()


def open_long_training(watched: Watched) -> Run:
    """A training run in a store of its own that goes on until it is stopped."""
    run = Run.load(watched.runs[0].store.uri("models/small/0-train"))
    return start_run(
        Store(watched.folder / "again"),
        kind="train",
        archive="small",
        images=run.spec.images,
        model="small",
        settings=with_overrides(run.spec.settings, ["train.iterations=100000", "train.workers=1"]),
    )


def test_every_question_of_the_dashboard_is_answered(watched: Watched) -> None:
    assert watched.toggle(fail=True) == "failed"
    assert watched.toggle(fail=False) == "success"
    again = open_long_training(watched)
    job = subprocess.Popen(
        [sys.executable, "-c", WORKERS, again.uri],
        env=os.environ | LOGS | watched.ray.client_env,
        cwd=ROOT,
        stdout=(watched.folder / "job.log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    unanswered: set[str] = set()
    try:
        prometheus = watched.prometheus
        # An alert is needed for the list of alerts.
        watched.write_rules(("damage_atlas_store_up == 0", "damage_atlas_store_up == 1"))
        prometheus.reload()
        prometheus.wait_for('ray_damage_atlas_progress_done{stage="train"}', timeout_s=240)
        prometheus.wait_for('ALERTS{alertstate="firing"}', timeout_s=60)
        for panel in panels():
            for expression in expressions(panel):
                if not prometheus.query(expression):
                    unanswered.add(f"{panel['title']}: {expression}")
    finally:
        job.kill()
        job.wait()
        watched.write_rules()
        watched.prometheus.reload()
    # Ray writes where it comes from before each line of another process.
    lines = [line.partition("{")[2] for line in (watched.folder / "job.log").read_text().splitlines() if "{" in line]
    said = [json.loads("{" + line) for line in lines if '"stage"' in line]
    assert {line["stage"] for line in said} == {"catalog", "train"}
    assert {line["run_id"] for line in said} == {Path(again.uri).name}
    assert not unanswered, (watched.folder / "job.log").read_text()[-2000:]


def test_alerts_about_airflow_and_ray_fire_and_resolve(watched: Watched) -> None:
    prometheus = watched.prometheus
    fire = ("LastRunFailed", "DagFilesBroken", "AirflowComponentSilent", "RayMemoryLow", "RayDiskLow", "RayDown")
    prometheus.wait_for("airflow_triggerer_heartbeat_total")
    for alert in fire:
        prometheus.wait_for_alert(alert, firing=False, timeout_s=120)

    assert watched.toggle(fail=True) == "failed"
    prometheus.wait_for_alert("LastRunFailed", firing=True)
    (watched.folder / "dags" / "broken.py").write_text("from airflow.sdk import dag\nimport no_such_module\n")
    watched.airflow.kill_component("triggerer")
    # No test fills a machine's memory and disk: the limits come down instead, and go up again.
    watched.write_rules(("> 0.9", "> 0"))
    prometheus.reload()
    alerts = {alert: prometheus.wait_for_alert(alert, firing=True, timeout_s=180) for alert in fire[:5]}
    assert alerts["LastRunFailed"]["labels"]["dag_id"] == "toggle"
    assert alerts["AirflowComponentSilent"]["labels"]["component"] == "triggerer"

    watched.ray.stop()
    prometheus.wait_for_alert("RayDown", firing=True, timeout_s=120)

    watched.write_rules()
    prometheus.reload()
    (watched.folder / "dags" / "broken.py").unlink()
    watched.airflow.start_component("triggerer")
    watched.ray.start()
    watched.name_ray()
    assert watched.toggle(fail=False) == "success"
    for alert in fire:
        prometheus.wait_for_alert(alert, firing=False, timeout_s=240)

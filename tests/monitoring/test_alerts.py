"""The alert rules: promtool's tests, a page for each, and the library's own firing and resolving on a real Prometheus.

Those about Airflow and Ray fire in tests/airflow/test_monitoring.py. Durations are a sixtieth: minutes are seconds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from damage_atlas.publish import rollback
from damage_atlas.query import published_run
from damage_atlas.store import Run, Store
from tests.architecture.repository import ROOT, read
from tests.support.prometheus import Exporter, Prometheus, hurried, promtool

RULES = yaml.safe_load(read("infra/prometheus/alerts.yml"))
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}


def test_promtool_agrees() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", ROOT / "infra/prometheus/alerts.yml")
    promtool("check", "config", ROOT / "infra/prometheus/prometheus.yml")
    assert "SUCCESS" in promtool("test", "rules", ROOT / "tests/monitoring/alerts_test.yml")


def test_every_node_of_ray_is_asked() -> None:
    services = yaml.safe_load(read("docker-compose.yml"))["services"]
    jobs = {job["job_name"]: job for job in yaml.safe_load(read("infra/prometheus/prometheus.yml"))["scrape_configs"]}
    (asked,) = jobs["ray"]["dns_sd_configs"]
    assert set(asked["names"]) == {name for name in services if name.startswith("ray-")}


def test_promtool_tests_every_alert() -> None:
    tests = yaml.safe_load(read("tests/monitoring/alerts_test.yml"))["tests"]
    assert {case["alertname"] for test in tests for case in test.get("alert_rule_test", [])} == set(ALERTS)


def test_every_alert_has_its_page() -> None:
    pages = [line.removeprefix("### ") for line in read("docs/operations.md").splitlines() if line.startswith("### ")]
    assert [page for page in pages if page in ALERTS] == list(ALERTS), "in the order of the rules"


@pytest.fixture(scope="module")
def folder(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the store that may be damaged, beside archive files."""
    folder = tmp_path_factory.mktemp("watched")
    assert runs[0].store.folder is not None
    shutil.copytree(runs[0].store.folder, folder / "store")
    (folder / "archives").mkdir()
    (folder / "archives" / "small.yaml").write_text("{archive: small, images: x, model: m, max_age_days: 1000}")
    return folder


@pytest.fixture(scope="module")
def exporter(folder: Path) -> Iterator[Exporter]:
    with Exporter(folder / "exporter", Store(folder / "store"), folder / "archives") as exporter:
        yield exporter


@pytest.fixture(scope="module")
def prometheus(folder: Path, exporter: Exporter) -> Iterator[Prometheus]:
    rules = folder / "alerts.yml"
    rules.write_text(yaml.safe_dump(hurried(RULES)))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "atlas", "static_configs": [{"targets": [exporter.target]}]}],
    }
    with Prometheus(folder / "prometheus", config) as prometheus:
        prometheus.wait_for("damage_atlas_store_up == 1")
        yield prometheus


def fires_and_resolves(
    prometheus: Prometheus, alert: str, begin: Callable[[], Any], end: Callable[[], Any]
) -> dict[str, Any]:
    prometheus.wait_for_alert(alert, firing=False)
    begin()
    try:
        found = prometheus.wait_for_alert(alert, firing=True)
    finally:
        end()
    prometheus.wait_for_alert(alert, firing=False)
    labels: dict[str, Any] = found["labels"]
    return labels


def test_the_store_goes_away(prometheus: Prometheus, folder: Path) -> None:
    store, away = folder / "store", folder / "away"
    fires_and_resolves(prometheus, "StoreUnreadable", lambda: store.rename(away), lambda: away.rename(store))


def test_a_record_is_damaged(prometheus: Prometheus, folder: Path) -> None:
    # A version that the exporter has not read yet: what it has read stays true.
    newest = folder / "store" / "archives" / "small" / "versions" / "00000003.json"
    labels = fires_and_resolves(prometheus, "ArchiveDamaged", lambda: newest.write_text("{"), newest.unlink)
    assert labels["archive"] == "small"


def test_an_archive_file_is_mistaken(prometheus: Prometheus, folder: Path) -> None:
    file = folder / "archives" / "other.yaml"
    fires_and_resolves(prometheus, "ArchiveFileRefused", lambda: file.write_text("archive: ["), file.unlink)


def test_a_version_grows_old(prometheus: Prometheus, folder: Path) -> None:
    file = folder / "archives" / "small.yaml"
    text = file.read_text()
    labels = fires_and_resolves(
        prometheus,
        "VersionTooOld",
        lambda: file.write_text(text.replace("1000", "0.00001")),
        lambda: file.write_text(text),
    )
    assert labels["archive"] == "small"


def test_too_much_is_quarantined(prometheus: Prometheus, folder: Path) -> None:
    """One file of 52 is broken, 1.9%; the next version has two."""
    versions = folder / "store" / "archives" / "small" / "versions"
    newest = versions / "00000003.json"
    record = yaml.safe_load((versions / "00000002.json").read_text())
    worse = {"quarantined": 2, "reused": record["ledger"]["reused"] - 1, "reasons": {"truncated": 2}}

    def publish(**ledger: Any) -> None:
        newest.write_text(json.dumps(record | {"version": 3, "ledger": record["ledger"] | ledger}))

    labels = fires_and_resolves(prometheus, "ManyQuarantined", lambda: publish(**worse), newest.unlink)
    assert labels["archive"] == "small"


def test_there_is_something_to_look_at(prometheus: Prometheus, folder: Path) -> None:
    """The version before says nothing: that it is made the current one resolves the alert."""
    store = Store(folder / "store")
    assert prometheus.wait_for_alert("LookAtThis", firing=True)["labels"]["archive"] == "small"
    rollback(published_run(store, "small", 1))
    prometheus.wait_for_alert("LookAtThis", firing=False)


def test_a_target_is_down(prometheus: Prometheus, exporter: Exporter) -> None:
    fires_and_resolves(prometheus, "TargetDown", exporter.stop, exporter.start)


def test_all_is_quiet_at_the_end(prometheus: Prometheus) -> None:
    """Of the store, that is: there is no Airflow and no Ray."""
    prometheus.wait_for('absent(ALERTS{alertname!~"Airflow.*|Ray.*"})')  # last: the rollback stays

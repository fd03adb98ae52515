"""The dashboard: it is whole, and what it asks about published versions is answered after a run.

What it asks of Airflow and Ray is answered in tests/airflow/test_monitoring.py.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from damage_atlas.monitor import METRICS
from damage_atlas.store import Run
from tests.architecture.repository import read
from tests.support.dashboard import DASHBOARD, expressions, panels
from tests.support.prometheus import Exporter, Prometheus


def test_every_panel_has_its_place_and_its_source() -> None:
    source = yaml.safe_load(read("infra/grafana/provisioning/datasources/prometheus.yml"))["datasources"][0]["uid"]
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) > 20
    for panel in panels():
        assert panel["targets"] and panel["datasource"]["uid"] == source, panel["title"]
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and all(x < 24 for x, _ in cells), f"{panel['title']} lies on another panel"
        taken |= cells


def test_every_metric_of_ours_is_shown() -> None:
    shown = " ".join(expression for panel in panels() for expression in expressions(panel))
    unshown = {name for name in METRICS if f"damage_atlas_{name}" not in shown}
    assert unshown == {"store_read_timestamp_seconds", "version_age_limit_seconds", "images_embedded"}


def test_queries_about_versions_are_answered(runs: list[Run], tmp_path: Path) -> None:
    asked = [
        (p["title"], e) for p in panels() for e in expressions(p) if e.count("damage_atlas") > e.count("ray_damage")
    ]
    assert len(asked) >= 14
    with Exporter(tmp_path / "exporter", runs[-1].store) as exporter:
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "atlas", "static_configs": [{"targets": [exporter.target]}]}],
        }
        with Prometheus(tmp_path / "prometheus", config) as prometheus:
            prometheus.wait_for("damage_atlas_store_up == 1")
            for title, expression in asked:
                assert prometheus.wait_for(expression), title

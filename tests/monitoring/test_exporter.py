"""`damage-atlas metrics`: its figures are those of the run, whatever else is damaged or away; Prometheus reads them."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from damage_atlas.errors import StoreError
from damage_atlas.monitor import METRICS, AtlasCollector, metrics_text
from damage_atlas.pipeline import summarize
from damage_atlas.publish import rollback
from damage_atlas.store import Run, Store
from tests.architecture.test_formats import sections
from tests.support.prometheus import Exporter, Prometheus, promtool
from tests.support.published import raise_alerts

Figures = dict[tuple[str, ...], float]


def figures(text: str) -> Figures:
    """Value by name and label values."""
    return {
        (sample.name.removeprefix("damage_atlas_"), *(v for k, v in sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(collector: AtlasCollector) -> Figures:
    return {
        (sample.name.removeprefix("damage_atlas_"), *sample.labels.values()): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


@pytest.fixture
def store(runs: list[Run], tmp_path: Path) -> Store:
    """A copy that a test may damage."""
    folder = runs[0].store.folder
    assert folder is not None
    shutil.copytree(folder, tmp_path / "store")
    return Store(tmp_path / "store")


def test_the_figures_are_those_of_the_current_version(runs: list[Run]) -> None:
    summary = summarize(runs[-1])
    found = figures(metrics_text(runs[-1].store))
    assert summary["counts"] == {
        "listed": 52, "embedded": 15, "reused": 36, "duplicate": 0, "quarantined": 1, "pending": 0,
    }  # fmt: skip
    for outcome, count in summary["counts"].items():
        name = ("observations_listed", "small") if outcome == "listed" else ("observations", "small", outcome)
        assert found[name] == count
    assert found["observations_quarantined", "small", "truncated"] == 1
    assert found["version", "small"] == 2 and found["archive_up", "small"] == found["store_up",] == 1
    assert found["clusters", "small"] == summary["clusters"]
    assert found["clusters_born", "small"] == summary["new_clusters"]
    assert found["noise_ratio", "small"] == summary["noise_share"]
    for stage, seconds in summary["seconds"].items():
        assert found["stage_duration_seconds", "small", stage] == seconds
    assert found["images_embedded", "small"] == 15
    assert found["images_per_second", "small"] == pytest.approx(15 / summary["seconds"]["embed"])
    assert 0 < found["index_recall_ratio", "small"] <= 1


def test_alerts_are_counted_by_kind(runs: list[Run], store: Store) -> None:
    found = figures(metrics_text(store))
    counts = {labels[-1]: value for (name, *labels), value in found.items() if name == "alerts"}
    assert counts == {"born": 2, "growth": 0, "group": 0, "drift": 1}
    run = Run.load(store.uri(runs[-1].key))
    raise_alerts(run, "of a kind to come")
    assert figures(metrics_text(store))["alerts", "small", "of a kind to come"] == 1
    raise_alerts(run)
    assert sum(value for (name, *_), value in figures(metrics_text(store)).items() if name == "alerts") == 0


def test_every_metric_is_described(runs: list[Run], tmp_path: Path) -> None:
    described = [tuple(row) for row in sections()["Metrics"]]
    assert described == [(f"damage_atlas_{name}", ", ".join(labels), text) for name, (text, labels) in METRICS.items()]
    (tmp_path / "small.yaml").write_text("{archive: small, images: x, model: m, max_age_days: 2}")
    found = figures(metrics_text(runs[-1].store, tmp_path))
    assert {name for name, *_ in found} == set(METRICS), "a metric that is never given"
    assert found["version_age_limit_seconds", "small"] == 2 * 86400


def test_prometheus_finds_nothing_to_mend(runs: list[Run]) -> None:
    promtool("check", "metrics", stdin=metrics_text(runs[-1].store))


def test_a_rollback_shows(store: Store, runs: list[Run]) -> None:
    collector = AtlasCollector(store)
    collector.refresh()
    before = read(collector)
    rollback(Run.load(store.uri(runs[0].key)))
    collector.refresh()
    after = read(collector)
    assert after["version", "small"] == 3 and after["observations_listed", "small"] == 36
    published = ("version_published_timestamp_seconds", "small")
    assert after[published] > before[published]


def test_a_damaged_archive_hides_no_other(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    assert store.folder is not None
    shutil.copytree(store.folder / "archives" / "small", store.folder / "archives" / "other")
    (store.folder / "archives" / "no name").mkdir()
    record = store.folder / "archives" / "other" / "versions" / "00000002.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:100])
    collector = AtlasCollector(store)
    for _ in range(3):
        collector.refresh()
    found = read(collector)
    assert (found["archive_up", "small"], found["archive_up", "other"], found["store_up",]) == (1, 0, 1)
    assert ("version", "small") in found and ("version", "other") not in found
    assert [record.message for record in caplog.records if "other" in record.message] == [
        f"other: {store.uri('archives/other/versions/00000002.json')} is damaged: not a VersionRecord. "
        "Restore it from a backup."
    ], "said once"
    record.write_bytes(whole)
    collector.refresh()
    assert read(collector)["archive_up", "other"] == 1


@pytest.mark.parametrize("lost", ["run.yaml", "embed/artifact.json"])
def test_what_is_missing_of_a_version_is_no_figure(store: Store, runs: list[Run], lost: str) -> None:
    store.delete(f"{runs[-1].key}/{lost}")
    collector = AtlasCollector(store)
    assert collector.refresh() is None
    assert read(collector)["archive_up", "small"] == 0


def test_figures_stay_while_the_store_is_away(store: Store) -> None:
    assert store.folder is not None
    collector = AtlasCollector(store)
    assert read(collector) == {("store_up",): 0, ("store_read_timestamp_seconds",): 0}, "before it was ever read"
    collector.refresh()
    before = read(collector)
    away = store.folder.rename(store.folder.with_name("away"))
    assert collector.refresh() is not None
    during = read(collector)
    assert during == before | {("store_up",): 0}
    with pytest.raises(StoreError, match="is not there"):
        metrics_text(store)
    away.rename(store.folder)
    collector.refresh()
    assert read(collector)["store_up",] == 1


def test_a_mistaken_archive_file_is_counted(store: Store, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("{archive: small, images: x, model: m, max_age_days: 0.5}")
    (tmp_path / "bad.yaml").write_text("archive: [")
    found = figures(metrics_text(store, tmp_path))
    assert found["archive_files_refused",] == 1 and found["version_age_limit_seconds", "small"] == 43200


def test_an_empty_store_has_no_archives(tmp_path: Path) -> None:
    found = figures(metrics_text(Store(tmp_path)))
    assert {name for name, *_ in found} == {"store_up", "store_read_timestamp_seconds", "archive_files_refused"}


def test_the_figures_on_s3(runs: list[Run], s3_bucket: str) -> None:
    store = Store(f"s3://{s3_bucket}/atlas")
    for item in runs[0].store.list():
        if item.key.endswith((".json", ".yaml")):
            store.create(item.key, runs[0].store.read(item.key))
    here, there = figures(metrics_text(runs[0].store)), figures(metrics_text(store))
    assert here.keys() == there.keys()
    assert {k: v for k, v in here.items() if "timestamp" not in k[0]} == {
        k: v for k, v in there.items() if "timestamp" not in k[0]
    }


def test_prometheus_scrapes_the_command(runs: list[Run], tmp_path: Path) -> None:
    with Exporter(tmp_path / "exporter", runs[-1].store) as exporter:
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "atlas", "static_configs": [{"targets": [exporter.target]}]}],
        }
        with Prometheus(tmp_path / "prometheus", config) as prometheus:
            prometheus.wait_for("damage_atlas_store_up == 1")
            outcomes = prometheus.values("damage_atlas_observations", "outcome")
            assert outcomes == {"embedded": 15, "reused": 36, "duplicate": 0, "quarantined": 1, "pending": 0}
            assert sum(outcomes.values()) == prometheus.values("damage_atlas_observations_listed")[""]
        with urllib.request.urlopen(f"http://{exporter.target}/metrics") as page:
            assert page.headers["Content-Type"].startswith("text/plain")

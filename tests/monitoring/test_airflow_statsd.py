"""Airflow's figures, as the client that Airflow uses sends them, on the page that Prometheus reads."""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from statsd import StatsClient

from infra.local.processes import ProcessFamily, free_ports
from infra.prometheus.airflow_statsd import StatsdCollector
from tests.architecture.repository import ROOT
from tests.support.prometheus import promtool


def page(collector: StatsdCollector) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def figures(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(f" {k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (["a.b:1|c", "a.b:2|c"], {"a_b_total": 3}),
        (["a:1|c|@0.1"], {"a_total": 10}),
        (["a,dag_id=x,state=up:1|c", "a,state=up,dag_id=x:1|c"], {"a_total dag_id=x state=up": 2}),
        (["a,dag_id=x:1|c", "a:1|c"], {"a_total dag_id=x": 1, "a_total": 1}),
        (["g:5|g", "g:7|g"], {"g": 7}),
        (["g:5|g", "g:+2|g", "g:-3|g"], {"g": 4}),
        (["g,pool=default pool:1.5e3|g"], {"g pool=default pool": 1500}),
        (["g,file=C:/x:1|g"], {"g file=C:/x": 1}),
        (["t:1500|ms", "t:500.0|ms"], {"t_seconds_count": 2, "t_seconds_sum": 2}),
        (["a:1|c\nb:1|c\n"], {"a_total": 1, "b_total": 1}),
    ],
)  # fmt: skip
def test_what_is_sent_adds_up(sent: list[str], found: dict[str, float]) -> None:
    collector = StatsdCollector()
    for datagram in sent:
        collector.receive(datagram.encode())
    seen = figures(page(collector))
    assert seen.pop("airflow_statsd_refused_lines_total") == 0
    assert {k: v for k, v in seen.items() if "last_timestamp" not in k} == found


@pytest.mark.parametrize("sent", ["", "a", "a:|c", "a:1", "a:1|x", "a:x|c", ":1|c", "a:1|c|#x:y", "a:-1|c", "\xff\x00"])
def test_what_says_nothing_is_counted(sent: str) -> None:
    collector = StatsdCollector()
    collector.receive(sent.encode("latin-1") or b"\n")
    collector.receive(b"good:1|c")
    assert figures(page(collector)) == {"good_total": 1, "airflow_statsd_refused_lines_total": 1}


def test_ever_new_names_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.prometheus.airflow_statsd._MOST_SERIES", 10)
    collector = StatsdCollector()
    for number in range(15):
        collector.receive(f"a,n={number}:1|c".encode())
    collector.receive(b"a,n=0:1|c")
    seen = figures(page(collector))
    assert seen["airflow_statsd_refused_lines_total"] == 5 and seen["a_total n=0"] == 2


def test_a_timer_says_when_it_was_last_sent() -> None:
    collector = StatsdCollector()
    collector.receive(b"t:1|ms")
    assert figures(page(collector))["t_seconds_last_timestamp"] == pytest.approx(time.time(), abs=5)


def test_prometheus_finds_nothing_wrong() -> None:
    collector = StatsdCollector()
    for line in ('a,q="x\\y":1|c', "t:1|ms", "g:1|g", "t:2|g"):
        collector.receive(line.encode())
    seen = page(collector)
    assert "t_seconds_sum" in seen
    promtool("check", "metrics", stdin=seen)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """The script as the team set-up runs it: its UDP port, and the address of its page."""
    udp, http = free_ports(2)
    family = ProcessFamily(tmp_path)
    family.claim()
    script = ROOT / "infra/prometheus/airflow_statsd.py"
    family.start("statsd", [sys.executable, str(script), f"127.0.0.1:{udp}", f"127.0.0.1:{http}"], os.environ)
    yield udp, f"http://127.0.0.1:{http}/metrics"
    family.stop_all()


def test_the_client_that_airflow_uses(service: tuple[int, str]) -> None:
    port, address = service
    client = StatsClient("127.0.0.1", port, prefix="airflow")
    asked = {"airflow_scheduler_heartbeat_total", "airflow_dagrun_duration_failed_seconds_sum dag_id=pier"}
    deadline = time.monotonic() + 30
    while True:
        client.incr("scheduler_heartbeat")
        client.timing("dagrun.duration.failed,dag_id=pier", 2500)
        try:
            with urllib.request.urlopen(address) as answer:
                seen = figures(answer.read().decode())
            # Both: the page may be read between one packet and the next.
            if asked <= seen.keys():
                break
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert seen["airflow_dagrun_duration_failed_seconds_sum dag_id=pier"] >= 2.5

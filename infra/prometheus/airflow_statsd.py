"""Airflow's StatsD figures as a page for Prometheus: ``python airflow_statsd.py HOST:UDP_PORT HOST:HTTP_PORT``.

Every process of Airflow, also one that lives for a second, sends what happened as datagrams; this adds it up.
(Airflow's OpenTelemetry figures are summed in each process: those of short-lived tasks would overwrite each other.)

Expects names with tags as Airflow writes them with ``statsd_influxdb_enabled``: ``airflow.ti.finish,dag_id=a:1|c``.
A counter becomes ``airflow_ti_finish_total{dag_id="a"}``; a timer ``…_seconds_count`` and ``…_seconds_sum``, and
``…_seconds_last_timestamp``, when it was last sent: so an alert knows whether a failure is older than a success.
"""

from __future__ import annotations

import re
import socketserver
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.registry import Collector

Series = tuple[str, tuple[tuple[str, str], ...]]  # name and labels

_LINE = re.compile(
    r"(?P<name>[^:|]+(?::[^:|]+)*):(?P<value>[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\|(?P<kind>c|g|ms)(?:\|@(?P<rate>[\d.]+))?"
)
_MOST_SERIES = 20_000  # what sends ever new names must not fill the memory


class StatsdCollector(Collector):
    """What was received so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[Series, float] = {}
        self._gauges: dict[Series, float] = {}
        self._timers: dict[Series, tuple[int, float, float]] = {}  # count, sum in seconds, when last
        self.refused = 0

    def receive(self, datagram: bytes) -> None:
        """Add what a datagram says; lines that say nothing are counted."""
        for line in datagram.decode(errors="replace").splitlines():
            match = _LINE.fullmatch(line.strip())
            with self._lock:
                if match is None or not self._add(match):
                    self.refused += 1

    def _add(self, match: re.Match[str]) -> bool:
        series, value, kind = _series(match["name"]), float(match["value"]), match["kind"]
        known: dict[Series, object] = {"c": self._counters, "g": self._gauges, "ms": self._timers}[kind]  # type: ignore[assignment]
        if series not in known and len(self._counters) + len(self._gauges) + len(self._timers) >= _MOST_SERIES:
            return False
        if kind == "c":
            if value < 0:
                return False  # no counter
            self._counters[series] = self._counters.get(series, 0) + value / float(match["rate"] or 1)
        elif kind == "g":
            # A sign means a difference.
            before = self._gauges.get(series, 0) if match["value"][0] in "+-" else 0
            self._gauges[series] = before + value
        else:
            count, total, _ = self._timers.get(series, (0, 0.0, 0.0))
            self._timers[series] = count + 1, total + value / 1000, time.time()
        return True

    def collect(self) -> Iterable[Metric]:
        """The page: metrics of one name together."""
        with self._lock:
            counters, gauges, timers = dict(self._counters), dict(self._gauges), dict(self._timers)
        families: dict[str, Metric] = {}

        def add(name: str, suffix: str, kind: str, labels: tuple[tuple[str, str], ...], value: float) -> None:
            family = families.setdefault(name, Metric(name, "from Airflow, by StatsD", kind))
            family.add_sample(f"{name}{suffix}", dict(labels), value)

        for (name, labels), value in counters.items():
            add(name, "_total", "counter", labels, value)
        for (name, labels), value in gauges.items():
            add(name, "", "gauge", labels, value)
        for (name, labels), (count, total, last) in timers.items():
            add(f"{name}_seconds", "_count", "summary", labels, count)
            add(f"{name}_seconds", "_sum", "summary", labels, total)
            add(f"{name}_seconds_last_timestamp", "", "gauge", labels, last)
        add("airflow_statsd_refused_lines", "_total", "counter", (), self.refused)
        return families.values()


def _series(text: str) -> Series:
    name, *tags = text.split(",")
    pairs = (tag.partition("=") for tag in tags)
    return re.sub(r"\W", "_", name, flags=re.ASCII), tuple(
        sorted((re.sub(r"\W", "_", key, flags=re.ASCII), value) for key, _, value in pairs if key)
    )


def serve(udp: tuple[str, int], http: tuple[str, int]) -> None:
    """Receive and answer until the process is ended."""
    collector = StatsdCollector()

    class Receive(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            collector.receive(self.request[0])

    registry = CollectorRegistry()
    registry.register(collector)
    start_http_server(http[1], http[0], registry)
    with socketserver.UDPServer(udp, Receive) as server, suppress(KeyboardInterrupt):
        server.serve_forever()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} HOST:UDP_PORT HOST:HTTP_PORT")
    serve(_address(sys.argv[1]), _address(sys.argv[2]))

"""Figures of what is published, for Prometheus: read from version records and small JSON files, never from pictures.

What a version holds never changes, so each is read once; a scrape is answered from memory, also while the store is
away. Figures of the running jobs come from Ray, of the DAGs from Airflow: ``infra/prometheus/`` brings all together.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from damage_atlas.contracts import STAGES, Artifact, VersionRecord
from damage_atlas.errors import AtlasError, ContractError, InputError, StoreError
from damage_atlas.spec import NAME_PATTERN, ArchiveSpec, parse_document
from damage_atlas.store import Run, Store, current_version, read_version

__all__ = ["AtlasCollector", "metrics_text", "serve_metrics"]

logger = logging.getLogger(__name__)

# Of alerts.json; those of other kinds are counted as well, once there is one.
_ALERT_KINDS = ("born", "growth", "group", "drift")
_OUTCOMES = ("embedded", "reused", "duplicate", "quarantined", "pending")

_PREFIX = "damage_atlas_"
_DAY_S = 86400

# Name without the prefix, what it means, and its labels; docs/formats.md has the same list, and a test compares them.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "store_up": ("1 while the store can be read, else 0; the other figures are then the last ones", ()),
    "store_read_timestamp_seconds": ("when the store was last read, seconds since 1970", ()),
    "archive_up": ("1 while the records of the current version can be read, else 0", ("archive",)),
    "archive_files_refused": ("archive files that cannot be read or hold mistakes", ()),
    "version": ("number of the current version", ("archive",)),
    "version_published_timestamp_seconds": (
        "when the current version was published, seconds since 1970",
        ("archive",),
    ),
    "version_age_limit_seconds": ("`max_age_days` of the archive's file, where it has one", ("archive",)),
    "observations_listed": ("observations of the current version", ("archive",)),
    "observations": (
        "the same by where they went: " + ", ".join(_OUTCOMES),
        ("archive", "outcome"),
    ),
    "observations_quarantined": ("quarantined observations by reason", ("archive", "reason")),
    "images_embedded": ("images that the run of the current version embedded", ("archive",)),
    "images_per_second": ("the same by the embed stage's seconds; none where 0", ("archive",)),
    "clusters": ("clusters of the current version", ("archive",)),
    "clusters_born": ("clusters that were never there before", ("archive",)),
    "noise_ratio": ("share of images in no cluster, 0 to 1", ("archive",)),
    "index_recall_ratio": ("recall at 10 of the index, 0 to 1", ("archive",)),
    "alerts": ("what the current version says people should look at, by kind", ("archive", "kind")),
    "stage_duration_seconds": ("seconds that each stage of the current version took", ("archive", "stage")),
}


@dataclass(frozen=True)
class _Published:
    """What the figures of one version are made of."""

    record: VersionRecord
    artifacts: dict[str, Artifact]
    alerts: Counter[str] | None  # by kind; None: the version is older than alerts are

    def samples(self) -> Iterator[tuple[str, float, dict[str, str]]]:
        """Name without its prefix, value, and labels beside the archive's."""
        record, ledger = self.record, self.record.ledger
        embed, cluster, index = (self.artifacts[stage] for stage in ("embed", "cluster", "index"))
        yield "version", record.version, {}
        yield "version_published_timestamp_seconds", record.published_at.timestamp(), {}
        yield "observations_listed", ledger.listed, {}
        for outcome in _OUTCOMES:
            yield "observations", getattr(ledger, outcome), {"outcome": outcome}
        for reason, count in sorted(ledger.reasons.items()):
            yield "observations_quarantined", count, {"reason": reason}
        yield "images_embedded", embed.facts["images_embedded"], {}
        if embed.facts["images_embedded"] and embed.seconds:
            yield "images_per_second", embed.facts["images_embedded"] / embed.seconds, {}
        yield "clusters", record.clusters, {}
        yield "clusters_born", cluster.facts["new_clusters"], {}
        yield "noise_ratio", cluster.facts["noise_share"], {}
        yield "index_recall_ratio", index.facts["recall_at_10"], {}
        if self.alerts is not None:
            for kind in (*_ALERT_KINDS, *sorted(self.alerts.keys() - set(_ALERT_KINDS))):
                yield "alerts", self.alerts[kind], {"kind": kind}
        for stage in STAGES:
            if stage in self.artifacts:
                yield "stage_duration_seconds", self.artifacts[stage].seconds, {"stage": stage}


class AtlasCollector(Collector):
    """Figures of all archives of a store; `refresh()` reads, `collect()` only hands over.

    Args:
        archives: folder of archive files, for what they say about their archive's age; None: nothing is said.
    """

    def __init__(self, store: Store, archives: Path | None = None) -> None:
        self.store, self.archives = store, archives
        self._published: dict[tuple[str, int], _Published] = {}
        self._warned: dict[str, str] = {}
        self._read_at = 0.0
        figures = _Figures()
        figures.add("store_up", 0)
        figures.add("store_read_timestamp_seconds", 0)
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """What the last refresh found."""
        return self._figures.families.values()

    def refresh(self) -> AtlasError | None:
        """Read the store. What is away or damaged shows as 0 in an ``_up`` and hides nothing else.

        Returns:
            Why the store could not be read, or None.
        """
        figures, trouble = _Figures(), None
        try:
            self._add_archives(figures)
            self._read_at = time.time()
        except AtlasError as error:
            self._warn(self.store.root, error.message)
            figures, trouble = self._figures.of_archives(), error
        else:
            self._warned.pop(self.store.root, None)
        figures.add("store_up", trouble is None)
        figures.add("store_read_timestamp_seconds", self._read_at)
        self._add_age_limits(figures)
        self._figures = figures
        return trouble

    def _add_archives(self, figures: _Figures) -> None:
        folder = self.store.folder
        if folder is not None and not folder.is_dir():
            raise StoreError(f"{folder} is not there. Mount it, or name another store.")
        for archive in self.store.list_folders("archives"):
            if not NAME_PATTERN.fullmatch(archive):
                continue  # no archive: its name cannot be a key
            try:
                published = self._current(archive)
            except (ContractError, InputError) as error:  # this archive's records; all else is the store's trouble
                self._warn(archive, error.message)
                figures.add("archive_up", 0, archive=archive)
                continue
            self._warned.pop(archive, None)
            if published is not None:
                figures.add("archive_up", 1, archive=archive)
                for name, value, labels in published.samples():
                    figures.add(name, value, archive=archive, **labels)

    def _current(self, archive: str) -> _Published | None:
        number = current_version(self.store, archive)
        if number is None:
            return None
        if known := self._published.get((archive, number)):
            return known
        record = read_version(self.store, archive, number)
        run = Run.load(self.store.uri(record.run_key))
        artifacts = {stage: run.artifact(stage) for stage in record.artifacts}
        # Sealed after the record was made, so there may be none yet.
        publish = run.stage("publish").sealed
        try:
            alerts = _alert_kinds(run) if "alerts.json" in artifacts["cluster"].outputs else None
            published = _Published(record, artifacts | ({"publish": publish} if publish else {}), alerts)
            list(published.samples())
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"{run.uri}: its records are damaged ({error}). Restore it from a backup.") from error
        if publish:
            self._published = {k: v for k, v in self._published.items() if k[0] != archive}
            self._published[archive, number] = published
        return published

    def _add_age_limits(self, figures: _Figures) -> None:
        refused = 0
        for file in sorted(self.archives.glob("*.yaml")) if self.archives else []:
            try:
                spec = parse_document(ArchiveSpec, file.read_text(encoding="utf-8"), file.name)
            except (AtlasError, OSError, UnicodeDecodeError) as error:
                self._warn(str(file), str(error))
                refused += 1
                continue
            if spec.max_age_days is not None:
                figures.add("version_age_limit_seconds", spec.max_age_days * _DAY_S, archive=spec.archive)
        figures.add("archive_files_refused", refused)

    def _warn(self, where: str, message: str) -> None:
        # Once, not every few seconds for as long as it lasts.
        if self._warned.get(where) != message:
            self._warned[where] = message
            logger.warning("%s: %s", where, message)


def _alert_kinds(run: Run) -> Counter[str]:
    document = json.loads(run.read("cluster", "alerts.json"))
    return Counter(str(alert["kind"]) for alert in document["alerts"])


class _Figures:
    """The metric families of one reading."""

    def __init__(self) -> None:
        self.families = {
            name: GaugeMetricFamily(f"{_PREFIX}{name}", text, labels=labels) for name, (text, labels) in METRICS.items()
        }

    def add(self, name: str, value: float, **labels: str) -> None:
        self.families[name].add_metric([labels[label] for label in METRICS[name][1]], value)

    def of_archives(self) -> _Figures:
        """A copy of what was read from the store."""
        copy = _Figures()
        for name, (_, labels) in METRICS.items():
            if "archive" in labels and name != "version_age_limit_seconds":
                copy.families[name].samples = list(self.families[name].samples)
        return copy


def metrics_text(store: Store, archives: Path | None = None) -> str:
    """The figures as Prometheus reads them, once: for a textfile collector, or to look at.

    Raises:
        AtlasError: the store cannot be read.
    """
    collector = AtlasCollector(store, archives)
    if trouble := collector.refresh():
        raise trouble
    return generate_latest(_registry(collector)).decode()


def serve_metrics(
    store: Store,
    host: str,
    port: int,
    every_s: float,
    archives: Path | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serve the figures at ``http://host:port/metrics``, reading the store every ``every_s`` seconds, until ``stop``.

    Raises:
        InputError: the address cannot be listened on.
    """
    stop = stop or threading.Event()
    collector = AtlasCollector(store, archives)
    try:
        server, thread = start_http_server(port, host, _registry(collector))
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be listened on ({error.strerror}). Choose another address.") from error
    logger.info("metrics of %s at http://%s:%d/metrics", store.root, host, server.server_port)
    try:
        collector.refresh()
        while not stop.wait(every_s):
            collector.refresh()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(collector: Collector) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry

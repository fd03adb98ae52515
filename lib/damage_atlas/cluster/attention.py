"""What a person should look at: the queue of noise as a table, and alerts.json with the evidence of each alert."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.cluster.alerts import Cluster, Earlier, Finding, Images, find_alerts
from damage_atlas.cluster.moments import moments_of
from damage_atlas.cluster.noise import queue_noise
from damage_atlas.cluster.passports import Matching
from damage_atlas.contracts import NOISE, Alert, Alerts, Sighting
from damage_atlas.neighbours import Floats, Ints, Neighbours, exact_neighbours, read_vectors
from damage_atlas.store import Run
from damage_atlas.store.runs import Stage
from damage_atlas.store.versions import run_model

_NEAREST = 9
_LISTED = 100  # images and places of an alert that are named
_OF_THE_CATALOG = ("element", "position_m", "captured_at", "latitude", "longitude")

Row = dict[str, Any]


def write_noise(
    stage: Stage, previous: Run | None, ids: Sequence[str], near: Neighbours, labels_N: Ints, points: pa.Table,
    moments: Mapping[str, str],
) -> None:  # fmt: skip
    """Write noise.parquet.

    Args:
        near: of each image without itself, nearest first.
        points: the table that is written as points.parquet.
        moments: image_id -> what names the moment that it shows.
    """
    numbers = {moment: n for n, moment in enumerate(dict.fromkeys(moments.values()))}
    moment_N = np.array([numbers[moments[image_id]] for image_id in ids], dtype=np.int64)
    queue = queue_noise(ids, near, labels_N, moment_N)
    seen = _first_rows(points, {ids[row] for row in queue.rows_Q})
    before = None if previous is None else _images_of(previous)
    sizes = Counter(queue.group_Q.tolist())
    rows: list[Row] = []
    for row, unlike, group in zip(queue.rows_Q.tolist(), queue.unlike_Q.tolist(), queue.group_Q.tolist(), strict=True):
        point = seen.get(ids[row])
        if point is not None:
            kept = ("observation_id", "image_id", "uri", "cluster_id", "novelty", "label", "asset_id", "delivery")
            rows.append(
                {name: point[name] for name in kept}
                | {
                    "rank": len(rows) + 1,
                    "unlike": unlike,
                    "group": group or None,
                    "group_size": sizes[group] if group else 1,
                    "is_new": before is None or ids[row] not in before,
                }
            )
    stage.write_table("noise.parquet", pa.Table.from_pylist(rows, NOISE))


def write_alerts(
    stage: Stage, previous: Run | None, matching: Matching, ids: Sequence[str], vectors_ND: Floats, labels_N: Ints,
    points: pa.Table, clusters: pa.Table, moments: Mapping[str, str],
) -> Alerts:  # fmt: skip
    """Write alerts.json; a quiet run's has no alerts.

    Args:
        points, clusters: the tables that are written as points.parquet and clusters.parquet.
        moments: image_id -> what names the moment that it shows.
    """
    run = stage.run
    spec = run.spec.settings.cluster
    limits = {name: getattr(spec, name) for name in ("alert_score", "alert_growth", "alert_drift")}
    document = Alerts(
        archive=run.spec.archive,
        version=(run.spec.previous_version or 0) + 1,
        run_id=run.spec.run_id,
        delivery=run.spec.delivery,
        compared_with=run.spec.previous_version,
        limits=limits,
    )
    if previous is None:
        document = document.model_copy(update={"not_compared": "the first version: there is nothing to compare with"})
    else:
        before = _clusters_before(previous)
        is_new = np.array([image_id not in before for image_id in ids], dtype=bool)
        named = moments_of(previous) | dict(moments)
        images, earlier, why_not = _compared(run, previous, ids, vectors_ND, is_new, before, named)
        found = find_alerts(images, earlier, _asked(matching, labels_N, clusters, before, named), spec)
        evidence = _Evidence(run, ids, vectors_ND, points, found)
        sizes = {cluster: int((labels_N == label).sum()) for label, cluster in matching.ids.items()}
        sizes_before = Counter(cluster for cluster in before.values() if cluster is not None)
        document = document.model_copy(
            update={
                "not_compared": why_not,
                "new_images": int(is_new.sum()),
                "old_images": len(earlier.vectors_PD),
                "alerts": [
                    evidence.of(finding, medoid, sizes, sizes_before)
                    for finding, medoid in zip(found, evidence.medoids, strict=True)
                ],
            }
        )
    stage.write("alerts.json", document.model_dump_json(indent=1).encode())
    return document


def _asked(
    matching: Matching,
    labels_N: Ints,
    clusters: pa.Table,
    before: Mapping[str, int | None],
    moments: Mapping[str, str],
) -> list[Cluster]:
    moments_before: defaultdict[int | None, set[str]] = defaultdict(set)
    for image_id, cluster in before.items():
        moments_before[cluster].add(moments[image_id])
    artefact = dict(zip(clusters["cluster_id"].to_pylist(), clusters["map_artefact"].to_pylist(), strict=True))
    return [
        Cluster(
            cluster,
            matching.statuses[cluster],
            np.flatnonzero(labels_N == label),
            artefact.get(cluster, False),
            len(moments_before[cluster]),
        )
        for label, cluster in sorted(matching.ids.items())
    ]


def _compared(
    run: Run,
    previous: Run,
    ids: Sequence[str],
    vectors_ND: Floats,
    is_new_N: np.ndarray,
    before: Mapping[str, int | None],
    moments: Mapping[str, str],
) -> tuple[Images, Earlier, str | None]:
    """The run's images, those of the previous version by this run's model, and why there are none of these."""
    card, card_before = run_model(run), run_model(previous)
    why_not = None
    if (card.model, card.version) == (card_before.model, card_before.version):
        old_ids, old = read_vectors(previous)
    else:
        old_ids, old = [i for i, new in zip(ids, is_new_N, strict=True) if not new], vectors_ND[~is_new_N]
        if not old_ids:
            why_not = "the model is another one, and no image of the previous version is in this one"
    numbers = {moment: n for n, moment in enumerate(dict.fromkeys(moments.values()))}

    def numbered(image_ids: Sequence[str]) -> Ints:
        return np.array([numbers[moments[image_id]] for image_id in image_ids], dtype=np.int64)

    was_clustered = np.array([before.get(image_id) is not None for image_id in ids], dtype=bool)
    return Images(vectors_ND, is_new_N, was_clustered, numbered(ids)), Earlier(old, numbered(old_ids)), why_not


class _Evidence:
    """Puts findings into words, with what there is to show for them."""

    def __init__(
        self, run: Run, ids: Sequence[str], vectors_ND: Floats, points: pa.Table, findings: Sequence[Finding]
    ) -> None:
        self.ids = ids
        self.nearest: dict[int, list[tuple[int, float]]] = {}  # medoid of a finding -> the images nearest to it
        self.medoids: list[int] = []
        for finding in findings:
            own = vectors_ND[finding.rows]
            medoid = int(finding.rows[(own @ own.sum(axis=0)).argmax()])
            near = exact_neighbours(vectors_ND, _NEAREST + 1, vectors_ND[[medoid]])
            pairs = zip(near.ids_NK[0].tolist(), near.similarities_NK[0].tolist(), strict=True)
            self.nearest[medoid] = [(row, similarity) for row, similarity in pairs if row != medoid][:_NEAREST]
            self.medoids.append(medoid)
        shown = {int(row) for finding in findings for row in finding.rows}
        shown |= {row for pairs in self.nearest.values() for row, _ in pairs}
        self.seen = _first_rows(points, {ids[row] for row in shown})
        catalog = run.read_table("catalog", "observations.parquet", ["observation_id", *_OF_THE_CATALOG])
        wanted = pa.array([row["observation_id"] for row in self.seen.values()], pa.string())
        catalog = catalog.filter(pc.is_in(catalog["observation_id"], wanted))
        self.catalog = {row["observation_id"]: row for row in catalog.to_pylist()}

    def of(self, finding: Finding, medoid: int, sizes: Mapping[int, int], sizes_before: Mapping[int, int]) -> Alert:
        shown = [self._sighting(int(row), 1.0) for row in finding.rows]
        moments = sorted(s.captured_at for s in shown if s.captured_at is not None)
        cluster = finding.cluster_id
        assets = Counter(s.asset_id for s in shown if s.asset_id is not None)
        places = {(s.asset_id, s.element, s.position_m, s.latitude, s.longitude): s.place() for s in shown}
        alert = Alert(
            kind=finding.kind,
            cluster_id=cluster,
            text="",
            score=finding.score,
            images=len(finding.rows),
            moments=finding.moments,
            expected=finding.expected,
            growth=finding.growth,
            size=None if cluster is None else sizes[cluster],
            size_before=None if cluster is None else sizes_before.get(cluster, 0),
            clusters={
                "noise" if c is None else str(c): n
                for c, n in sorted(
                    Counter(self.seen[s.image_id]["cluster_id"] for s in shown).items(),
                    key=lambda x: (-x[1], str(x[0])),
                )
            },
            nearest_label=_commonest(self.seen[s.image_id]["label"] for s in shown),
            medoid=self._sighting(medoid, 1.0),
            nearest=[self._sighting(row, similarity) for row, similarity in self.nearest[medoid]],
            image_ids=[s.image_id for s in shown[:_LISTED]],
            assets=dict(sorted(assets.items(), key=lambda item: (-item[1], item[0]))),
            places=[place for place in places.values() if place][:_LISTED],
            captured_from=moments[0] if moments else None,
            captured_to=moments[-1] if moments else None,
        )
        return alert.model_copy(update={"text": _sentence(alert)})

    def _sighting(self, row: int, similarity: float) -> Sighting:
        point = self.seen[self.ids[row]]
        names = ("observation_id", "image_id", "uri", "asset_id", "delivery")
        return Sighting(
            similarity=min(similarity, 1.0),
            **{name: point[name] for name in names},
            **{name: self.catalog[point["observation_id"]][name] for name in _OF_THE_CATALOG},
        )


def _sentence(alert: Alert) -> str:
    images = f"{alert.images:,} new image{'' if alert.images == 1 else 's'}"
    if alert.moments != alert.images:
        images += f" of {alert.moments:,} moment{'' if alert.moments == 1 else 's'}"
    chance = f"about {alert.expected:.1f} would by chance"
    match alert.kind:
        case "born":
            text = f"A new cluster, {alert.cluster_id}: {images} lie there, {chance}"
        case "growth":
            text = f"Cluster {alert.cluster_id} has grown to {alert.growth:.1f} times its size: {images}, {chance}"
        case "group":
            text = f"{images} lie closely together, {chance}"
        case _:
            text = f"The delivery is unlike the archive: {images} lie far from all earlier ones, {chance}"
    if alert.nearest_label:
        text += f"; nearest label {alert.nearest_label}"
    if alert.assets:
        named = ", ".join(f"{asset} ({n})" for asset, n in list(alert.assets.items())[:3])
        text += f"; on {named}" + (f" and {len(alert.assets) - 3} more assets" if len(alert.assets) > 3 else "")
    return f"{text}."


def _commonest(labels: Any) -> str | None:
    counts = Counter(label for label in labels if label is not None)
    return min(counts, key=lambda label: (-counts[label], label), default=None)


def _first_rows(points: pa.Table, image_ids: set[str]) -> dict[str, Row]:
    """The first observation of each of these images."""
    seen: dict[str, Row] = {}
    for row in points.filter(pc.is_in(points["image_id"], pa.array(sorted(image_ids), pa.string()))).to_pylist():
        seen.setdefault(row["image_id"], row)
    return seen


def _images_of(previous: Run) -> set[str]:
    return set(pc.unique(previous.read_table("cluster", "points.parquet", ["image_id"])["image_id"]).to_pylist())


def _clusters_before(previous: Run) -> dict[str, int | None]:
    table = previous.read_table("cluster", "points.parquet", ["image_id", "cluster_id"])
    return dict(zip(table["image_id"].to_pylist(), table["cluster_id"].to_pylist(), strict=True))

"""A sealed run up to explain, made directly: real small pictures, plausible numbers, any size and any odd name.

The stages before the report have their own tests; here their artifacts are only inputs, so they are written through
the same ``Stage`` door without computing anything.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from damage_atlas.contracts import (
    CLUSTER_LEDGER,
    CLUSTERS,
    EXPLANATIONS,
    FAILED,
    IDS,
    LINEAGE,
    NOISE,
    OBSERVATIONS,
    POINTS,
    Alert,
    Alerts,
    Ledger,
    ModelCard,
    Output,
    Remark,
    Remarks,
    Sighting,
    VersionRecord,
)
from damage_atlas.images import encode_jpeg
from damage_atlas.spec import CatalogSpec, ReportSpec, RunSpec, Settings
from damage_atlas.store import Run, Stage, Store, open_run, publish_version

HOSTILE_FILE = "<img src=x onerror=alert(1)>.jpg"
HOSTILE_LABEL = '</script><script>alert(2)</script><b title="x">'
HOSTILE_ASSET = "Brücke \"7\" <i onmouseover='alert(3)'>北\n\u202egpj"
PIXELS = 96
_PICTURED_KINDS = 13  # clusters beyond repeat the pictures of earlier ones


@dataclass(frozen=True)
class Scene:
    """What the synthetic archive looks like."""

    images: int = 400
    labels: tuple[str, ...] = ("corrosion", "crack", "spalling", "sound")
    clusters: int = 9
    noise_share: float = 0.04
    assets: int = 12
    quarantined: int = 7
    duplicates: int = 5
    previous: bool = True
    labelled: bool = True
    hover_pictures: int = 1500
    names: dict[int, str] = field(default_factory=dict)  # image -> file name
    asset_names: dict[int, str] = field(default_factory=dict)  # asset -> name
    distinct_pictures: int = 60  # files beyond repeat their pixels
    places: int = 0  # of each asset, which images name; 0: they name none


def texture(kind: int, seed: int, size: int = PIXELS) -> NDArray[np.uint8]:
    """A surface with a mark on it: ``kind`` decides direction, scale and tint, ``seed`` the rest."""
    rng = np.random.default_rng([kind, seed])
    y, x = np.indices((size, size)) / size
    angle = kind * 0.7 + rng.normal(0, 0.08)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    grain = rng.normal(0, 0.05, (size, size))
    cloud = 0.08 * np.sin(2 * np.pi * (1 + kind % 3) * (x + rng.random())) * np.sin(2 * np.pi * (y + rng.random()))
    course = rng.uniform(-0.2, 0.2) + 0.05 * np.sin(along * (6 + 4 * (kind % 4)) + rng.random() * 6)
    mark = np.exp(-(((across - course) / (0.012 + 0.02 * (kind % 5))) ** 2))
    tint = np.array([(0.95, 0.95, 0.9), (1.05, 0.92, 0.8), (0.88, 0.97, 1.02)][kind % 3])
    grey = rng.uniform(0.5, 0.68) + grain + cloud - 0.36 * mark
    return (255 * np.clip(grey[..., None] * tint, 0, 1)).astype(np.uint8)


def warm(picture: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """A stand-in for a heat map: the picture under a warm blob."""
    rng = np.random.default_rng(seed)
    size = len(picture)
    y, x = np.indices((size, size)) / size
    blob = np.exp(-((x - rng.uniform(0.3, 0.7)) ** 2 + (y - rng.uniform(0.3, 0.7)) ** 2) / 0.05)[..., None]
    color = np.concatenate([255 * blob, 160 * blob * (1 - blob) * 3, 180 * (1 - blob)], axis=-1)
    return np.clip(0.5 * picture + 0.5 * color, 0, 255).astype(np.uint8)


def make_run(folder: Path, scene: Scene = Scene()) -> Run:
    """The run below ``folder``; with ``scene.previous`` it follows a published version."""
    store, images = Store(folder / "store"), folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    truth = _draw(scene, images)
    card = _model(store, scene)
    previous_version = None
    if scene.previous:
        early = truth.take(int(len(truth.files) * 0.7))
        first = _run(store, images, scene, early, card, "20260201T020000Z", None, "2026-02")
        publish_version(
            store,
            VersionRecord(
                version=1, archive=first.spec.archive, run_id=first.spec.run_id, run_key=first.key, artifacts={},
                ledger=Ledger(), clusters=scene.clusters - 1, next_cluster_id=scene.clusters + 1,
            ),
        )  # fmt: skip
        previous_version = 1
    return _run(store, images, scene, truth, card, "20260301T020000Z", previous_version, "2026-03")


@dataclass(frozen=True)
class _Truth:
    files: list[str]
    cluster: list[int | None]
    xy: NDArray[np.float32]
    label: list[str | None]
    asset: list[str | None]

    def take(self, n: int) -> _Truth:
        """The first ``n`` images, without the last cluster: it is yet to be born."""
        last = max((c for c in self.cluster if c is not None), default=None)
        kept = [i for i in range(n) if self.cluster[i] is None or self.cluster[i] != last]
        return _Truth(
            *([column[i] for i in kept] for column in (self.files, self.cluster)),
            self.xy[kept],
            *([column[i] for i in kept] for column in (self.label, self.asset)),
        )


def _draw(scene: Scene, images: Path) -> _Truth:
    rng = np.random.default_rng(7)
    n, k = scene.images, scene.clusters
    weights = 1 / np.arange(1, k + 1) ** 0.6 if k else np.array([])
    cluster: list[int | None] = [
        None if k == 0 or rng.random() < scene.noise_share else int(rng.choice(k, p=weights / weights.sum())) + 1
        for _ in range(n)
    ]
    turn = np.arange(k + 1) * 2.39996
    centres = np.stack([np.cos(turn), np.sin(turn)], axis=1) * np.sqrt(np.arange(k + 1) + 0.5)[:, None] * 14
    spread = rng.uniform(2.0, 5.0, (k + 1, 2))
    xy = np.array(
        [rng.uniform(-60, 60, 2) if c is None else centres[c] + rng.normal(0, 1, 2) * spread[c] for c in cluster]
    ).reshape(n, 2)
    names = scene.labels
    label: list[str | None] = []
    for c in cluster:
        if not names:
            label.append(None)
        elif c is None or rng.random() < 0.08:
            label.append(names[int(rng.integers(len(names)))])
        else:
            label.append(names[c % len(names)])
    assets = [scene.asset_names.get(i, f"bridge-{i // 3 + 1}/span-{i % 3 + 1}") for i in range(scene.assets)]
    asset = [assets[int(rng.integers(len(assets)))] if assets else None for _ in range(n)]
    files = [scene.names.get(i, f"flight-{1 + i * 10 // max(n, 1):02d}/IMG_{i:05d}.jpg") for i in range(n)]
    drawn: dict[tuple[int, int], bytes] = {}
    for i, (file, c) in enumerate(zip(files, cluster, strict=True)):
        key = (c or 0, i % max(scene.distinct_pictures // max(k, 1), 1))
        if key not in drawn:
            drawn[key] = encode_jpeg(texture(*key))
        path = images / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn[key])
    return _Truth(files, cluster, xy.astype(np.float32), label, asset)


def _model(store: Store, scene: Scene) -> ModelCard:
    nothing = Output(key="models/damage/v1/model.safetensors", sha256="0" * 64, size_bytes=0)
    card = ModelCard(
        model="damage", version="v1", network={"input_size": 160, "embedding_size": 16}, preprocessing={"size": 160},
        classes=sorted(scene.labels), parameters=6_650_704, weights=nothing, reference=nothing,
        train_spec={"loss": "mn_pair", "iterations": 2000}, data_sha256="ab" * 32,
        images={"train": 1050, "test": 450}, scores={"knn_accuracy": 0.9137}, code_version="0.1.0",
        created_at=datetime(2026, 1, 15, tzinfo=UTC),
    )  # fmt: skip
    store.create_same("models/damage/v1/model.json", card.model_dump_json(indent=1).encode())
    return card


def _run(
    store: Store, images: Path, scene: Scene, truth: _Truth, card: ModelCard, run_id: str, previous: int | None,
    delivery: str,
) -> Run:  # fmt: skip
    settings = Settings(
        catalog=CatalogSpec(labels="none", deliveries="folder"),
        report=ReportSpec(hover_pictures=scene.hover_pictures),
    )
    run = open_run(
        store,
        RunSpec(
            run_id=run_id, kind="recluster", archive="north-bridge", images=str(images), delivery=delivery,
            model=card.model, model_version=card.version, previous_version=previous, settings=settings,
        ),
    )  # fmt: skip
    observations = _observations(images, scene, truth, delivery)
    ok = [row for row in observations if row["status"] == "ok"]
    catalog = run.stage("catalog")
    catalog.write_table("observations.parquet", pa.Table.from_pylist(observations, schema=OBSERVATIONS))
    n_bad = sum(row["status"] == "quarantined" for row in observations)
    counts = {"in": len(observations), "out": len(observations) - n_bad, "failed": n_bad}
    catalog.seal((), counts, {"files": len(observations)})

    failed = (
        [
            {
                "image_id": ok[-1]["image_id"],
                "stage": "embed",
                "reason": "changed",
                "detail": "the bytes differ",
            }
        ]
        if scene.quarantined and len(ok) > 1
        else []
    )
    reasons: dict[str, int] = {}
    for row in [*failed, *(row for row in observations if row["status"] == "quarantined")]:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    n_points = len(ok) - len(failed)
    reused = n_points // 2 if previous else 0
    ledger = Ledger(
        listed=len(observations), embedded=n_points - reused, reused=reused,
        duplicate=sum(row["status"] == "duplicate" for row in observations),
        quarantined=sum(reasons.values()), reasons=reasons,
    ).check("synthetic")  # fmt: skip
    embed = run.stage("embed")
    embed.write_table("failed.parquet", pa.Table.from_pylist(failed, schema=FAILED))
    embed.seal(("catalog",), _counts(n_points), {"model": "damage@v1", "ledger": ledger.model_dump()})
    index = run.stage("index")
    index.write_table("ids.parquet", pa.Table.from_pylist([{"image_id": r["image_id"]} for r in ok], schema=IDS))
    index.write_json("recall.json", {"kind": "flat", "k": 10, "queries": 1000, "recall": 1.0})
    index.seal(("embed",), _counts(n_points), {"kind": "flat", "recall": 1.0})
    points = _points(ok[:n_points], truth, scene)
    _cluster(run, points, previous, scene)
    if previous is not None or not scene.previous:  # of an earlier run only the clusters are read
        _explain(run, points)
    return run


def _counts(n: int) -> dict[str, int]:
    return {"in": n, "out": n, "failed": 0}


def _observations(images: Path, scene: Scene, truth: _Truth, delivery: str) -> list[dict[str, Any]]:
    rows = []
    for i, file in enumerate(truth.files):
        data = (images / file).read_bytes()
        rows.append(
            _observation(file, "2026-02" if scene.previous and i < 0.7 * scene.images else delivery) | {
                # The picture's bytes repeat; ids do not: a vector for each keeps the tables of one length.
                "image_id": hashlib.sha256(f"{i}".encode()).hexdigest(), "sha256": hashlib.sha256(data).hexdigest(),
                "size_bytes": len(data), "width": PIXELS, "height": PIXELS, "format": "JPEG",
                "asset_id": truth.asset[i], "status": "ok",
                "position_m": 10.0 * (i % scene.places) if scene.places else None,
                "captured_at": datetime(2026, 2, 27, 9, tzinfo=UTC) + timedelta(seconds=7 * i),
            }
        )  # fmt: skip
    for i in range(min(scene.duplicates, len(truth.files))):
        copy = dict(rows[i])
        again = _observation(f"resent/{Path(truth.files[i]).name}", delivery)
        rows.append(copy | {k: again[k] for k in ("observation_id", "uri", "file")} | {"status": "duplicate"})
    faults = (
        ("truncated", "image file is truncated (12 bytes not processed)"),
        ("not_an_image", r"starts with b'<svg onl'; read are JPEG, PNG"),
        ("empty", "0 bytes"),
        ("bomb", "60000 x 60000 pixels, the limit is 300,000,000 in all"),
        ("corrupt", "<script>alert('detail')</script>"),
    )
    for i in range(scene.quarantined - 1):  # one more fails when it is embedded
        reason, detail = faults[i % len(faults)]
        file = HOSTILE_FILE if i == 0 else f"broken/über \"{i}\" & 'co'\n<b>.jpg" if i == 1 else f"broken/{i:04d}.jpg"
        rows.append(_observation(file, delivery) | {"status": "quarantined", "reason": reason, "detail": detail})
    return rows


def _observation(file: str, delivery: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(OBSERVATIONS.names)
    identity = hashlib.sha256(file.encode()).hexdigest()[:24]
    return row | {"observation_id": identity, "uri": f"file:///{identity}", "file": file, "labels": [],
                  "delivery": delivery}  # fmt: skip


def _points(ok: list[dict[str, Any]], truth: _Truth, scene: Scene) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    return [
        {
            "observation_id": row["observation_id"], "image_id": row["image_id"], "uri": row["uri"],
            "x": float(truth.xy[i, 0]), "y": float(truth.xy[i, 1]), "cluster_id": truth.cluster[i],
            "role": "noise" if truth.cluster[i] is None else "core", "confidence": float(rng.uniform(0.6, 1)),
            "novelty": float(rng.uniform(0.01, 0.3)), "label": truth.label[i] if scene.labelled else None,
            "label_source": "predicted" if scene.labelled and truth.label[i] else None,
            "asset_id": row["asset_id"], "delivery": row["delivery"],
        }
        for i, row in enumerate(ok)
    ]  # fmt: skip


def _cluster(run: Run, points: list[dict[str, Any]], previous: int | None, scene: Scene) -> None:
    ids = sorted({p["cluster_id"] for p in points if p["cluster_id"] is not None})
    plan = {ids[-1]: "born"} if ids else {}
    if len(ids) >= 5:
        plan |= {ids[-2]: "split", ids[2]: "merged", ids[0]: "grown", ids[1]: "shrunk"}
    rows, lineage = [], []
    for c in ids:
        members = [p for p in points if p["cluster_id"] == c]
        labels: dict[str, int] = {}
        for p in members:
            if p["label"] is not None:
                labels[p["label"]] = labels.get(p["label"], 0) + 1
        top = max(labels, key=lambda name: labels[name]) if labels else None
        status = plan.get(c, "kept") if previous else "born"
        rows.append(
            {
                "cluster_id": c, "size": len(members), "medoid_image_id": members[0]["image_id"],
                "purity": labels[top] / len(members) if top else None, "top_label": top,
                "label_counts": list(labels.items()), "confidence": 0.9 - 0.02 * (c % 7), "status": status,
                "map_artefact": c % 11 == 4, "first_version": 2 if status == "born" and previous else 1,
                "new_share": 0.97 if status == "born" else 0.3, "novelty": 0.31 if status == "born" else 0.06,
                "reappears": 5 / 6, "explained_by": "group" if c % 11 == 5 else None,
            }
        )  # fmt: skip
        sources = {"born": [None], "split": [ids[0]], "merged": [c, 99]}.get(status, [c])
        if previous:
            lineage += [
                {"from_cluster_id": s, "to_cluster_id": c, "event": status, "shared_images": 0 if s is None else 20,
                 "share": 0.0 if s is None else 0.41, "evidence": "images"}
                for s in sources
            ]  # fmt: skip
    if previous and ids:
        gone = {"from_cluster_id": 77, "to_cluster_id": None, "event": "died", "shared_images": 0, "share": 0}
        lineage.append(gone | {"evidence": "images"})
    stage = run.stage("cluster")
    stage.write_table("points.parquet", pa.Table.from_pylist(points, schema=POINTS))
    stage.write_table("clusters.parquet", pa.Table.from_pylist(rows, schema=CLUSTERS))
    stage.write_table("lineage.parquet", pa.Table.from_pylist(lineage, schema=LINEAGE))
    sizes = {row["cluster_id"]: row["size"] for row in rows}
    ledger = [
        row | {"version": 2, "run_id": run.spec.run_id, "delivery": None, "size": sizes.get(row["to_cluster_id"])}
        for row in lineage
    ]
    stage.write_table("ledger.parquet", pa.Table.from_pylist(ledger, schema=CLUSTER_LEDGER))
    said = [
        Remark(cluster_id=ids[0], name=HOSTILE_LABEL, note="ask <b>Ann</b>", said_by="Ann", severity="4",
               said_at=datetime(2026, 2, 3, tzinfo=UTC))
    ] if ids else []  # fmt: skip
    stage.write("remarks.json", Remarks(remarks=said).model_dump_json().encode())
    _what_to_look_at(stage, points, rows, previous)
    noise = sum(p["cluster_id"] is None for p in points)
    facts = {"eps": 3.07, "eps_source": "auto", "noise_share": noise / max(len(points), 1), "iterations": 750}
    facts |= {"map": "fitted again" if previous else "fitted", "map_because": "cluster.refit asks for <it>"}
    stage.seal(("embed", "index"), _counts(len(points)), facts | {"ari": 0.61})


def _what_to_look_at(
    stage: Stage, points: list[dict[str, Any]], rows: list[dict[str, Any]], previous: int | None
) -> None:
    kept = ("observation_id", "image_id", "uri", "cluster_id", "novelty", "label", "asset_id", "delivery")
    lonely = [p for p in points if p["cluster_id"] is None]
    queue = [
        {name: p[name] for name in kept}
        | {"rank": i + 1, "unlike": 0.5 - 0.01 * i, "group": 1 if i < 3 else None, "group_size": 3 if i < 3 else 1,
           "is_new": i % 2 == 0}
        for i, p in enumerate(lonely)
    ]  # fmt: skip
    stage.write_table("noise.parquet", pa.Table.from_pylist(queue, schema=NOISE))
    born = [row for row in rows if row["status"] == "born"] if previous else []
    alerts = []
    for row in born:
        seen = [
            Sighting(
                similarity=1 - 0.01 * i, element=None, position_m=None, captured_at=datetime(2026, 3, 1, tzinfo=UTC),
                latitude=None, longitude=None,
                **{name: p[name] for name in ("observation_id", "image_id", "uri", "asset_id", "delivery")},
            )
            for i, p in enumerate([p for p in points if p["cluster_id"] == row["cluster_id"]][:10])
        ]  # fmt: skip
        assets = {s.asset_id: 1 for s in seen if s.asset_id is not None}
        alerts.append(
            Alert(
                kind="born", cluster_id=row["cluster_id"], text=f"A new cluster on {', '.join(assets)}.", score=7.25,
                images=row["size"], moments=row["size"], expected=0.5, growth=None, size=row["size"], size_before=0,
                clusters={str(row["cluster_id"]): row["size"]}, nearest_label=row["top_label"], medoid=seen[0],
                nearest=seen[1:], image_ids=[s.image_id for s in seen], assets=assets, places=[],
                captured_from=datetime(2026, 3, 1, tzinfo=UTC), captured_to=datetime(2026, 3, 2, tzinfo=UTC),
            )
        )  # fmt: skip
    document = Alerts(
        archive="north-bridge", version=(previous or 0) + 1, run_id=stage.run.spec.run_id, delivery=None,
        compared_with=previous, not_compared=None if previous else "the first version", limits={"alert_score": 3.0},
        alerts=alerts,
    )  # fmt: skip
    stage.write("alerts.json", document.model_dump_json().encode())


def _explain(run: Run, points: list[dict[str, Any]]) -> None:
    stage = run.stage("explain")
    rows = []
    written = set()
    for c in sorted({p["cluster_id"] for p in points if p["cluster_id"] is not None}):
        for rank, point in enumerate([p for p in points if p["cluster_id"] == c][:10]):
            kind = c % _PICTURED_KINDS
            keys = [f"pictures/{kind:05d}-{rank}.{form}jpg" for form in ("", "heat.")]
            if (kind, rank) not in written:
                written.add((kind, rank))
                picture = texture(kind, rank, 160)
                stage.write(keys[0], encode_jpeg(picture))
                stage.write(keys[1], encode_jpeg(warm(picture, 100 * kind + rank)))
            rows.append(
                {
                    "cluster_id": c,
                    "rank": rank,
                    "observation_id": point["observation_id"],
                    "image_id": point["image_id"],
                    "similarity": 1 - 0.004 * rank,
                    "picture_key": f"{stage.name}/{keys[0]}",
                    "heatmap_key": f"{stage.name}/{keys[1]}",
                    "target": "sum_of_squares",
                    "method": "gradcam",
                    "faithfulness": 0.4 + 0.01 * rank,
                }
            )
    stage.write_table("explanations.parquet", pa.Table.from_pylist(rows, schema=EXPLANATIONS))
    stage.seal(("catalog", "cluster"), _counts(len(rows)))


def read_report(run: Run) -> dict[str, Any]:
    """The JSON twin of a run's report."""
    document: dict[str, Any] = json.loads(run.read("report", "report.json"))
    return document


def page_path(run: Run) -> Path:
    """Where the page of a run in a folder store lies."""
    assert run.store.folder is not None
    return run.store.folder / run.artifact("report").outputs["index.html"].key

"""Reads the sealed stages and works out what the report says: they become ``Facts`` and ``Point``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from damage_atlas.contracts import QUARANTINE_REASONS, Alerts, Artifact, Ledger, Remarks
from damage_atlas.images import SOURCE_COLUMNS, Source
from damage_atlas.report.assets import SCORE_RULE, rank_assets
from damage_atlas.report.changes import Change, describe_changes, tell_history
from damage_atlas.report.facts import (
    UNLABELLED,
    ClassRow,
    Cluster,
    Count,
    Duplicate,
    Facts,
    Grade,
    Point,
    Quarantined,
    Queued,
    Shown,
    StageFacts,
    place,
)
from damage_atlas.report.looks import Look, SamePlace, inspection_of
from damage_atlas.report.severity import CodeTable, grade_of_image
from damage_atlas.report.time import asset_courses, clusters_over_time
from damage_atlas.report.transitions import Course, all_rows, follow
from damage_atlas.store import Run
from damage_atlas.store.decisions import read_decisions
from damage_atlas.store.versions import run_model

Row = dict[str, Any]

_PLAINLY = 0.8  # of a cluster's images look like something without damage

INPUT_STAGES = ("catalog", "embed", "index", "cluster", "explain")
_QUEUE_SHOWN = 50
_TIMED_STAGES = ("catalog", "train", "embed", "index", "cluster", "explain")


def gather_points(run: Run) -> list[Point]:
    """All points in the order of points.parquet."""
    columns = ["observation_id", "frame_time_s", "position_m", *SOURCE_COLUMNS]
    catalog = {
        row["observation_id"]: row for row in run.read_table("catalog", "observations.parquet", columns).to_pylist()
    }
    points = []
    for row in run.read_table("cluster", "points.parquet").to_pylist():
        seen = catalog[row["observation_id"]]
        points.append(
            Point(
                observation_id=row["observation_id"],
                x=row["x"],
                y=row["y"],
                cluster_id=row["cluster_id"],
                label=row["label"],
                given=row["label_source"] == "given",
                confidence=row["confidence"],
                novelty=row["novelty"],
                asset_id=row["asset_id"],
                delivery=row["delivery"],
                source=Source.of_row(seen),
                time_s=seen["frame_time_s"],
                position_m=seen["position_m"],
            )
        )
    return points


def gather_facts(run: Run, points: list[Point], decisions_up_to: int | None = None) -> Facts:
    """Read the sealed stages and work out what the report says.

    Args:
        decisions_up_to: number of the last decision about assets that counts; by default all do.

    Raises:
        ContractError: a stage is not sealed, or an output is not what was sealed.
    """
    spec = run.spec
    artifacts = {stage: run.artifact(stage) for stage in INPUT_STAGES}
    observations = run.read_table("catalog", "observations.parquet").to_pylist()
    cluster_rows = run.read_table("cluster", "clusters.parquet").to_pylist()
    alive = [row for row in cluster_rows if row["status"] != "died"]
    clusters = _clusters(run, points, alive)
    before, changes = _since_previous(run, cluster_rows)

    noise = sum(p.cluster_id is None for p in points)
    alerts = Alerts.model_validate_json(run.read("cluster", "alerts.json"))
    queue = run.read_table("cluster", "noise.parquet").to_pylist()
    classes = _classes(points, clusters)
    labels = {p.label for p in points if p.label is not None}
    deliveries = Counter(row["delivery"] for row in observations if row["delivery"] is not None)
    delivery = spec.delivery or max(deliveries, default=None)
    captured = [
        row["captured_at"]
        for row in observations
        if row["captured_at"] is not None and row["delivery"] in (delivery, None)
    ]
    courses, without_asset, born = _courses(run, points, observations, clusters, before)
    periods, looks_of_period, over_time = clusters_over_time(courses, without_asset, [c.cluster_id for c in clusters])
    codes = CodeTable.of(spec.settings.report)
    # The embed stage says which version it used: a run that trains its own model has none in its spec.
    card = run_model(run)
    return Facts(
        title=spec.settings.report.title or f"Damage atlas of {spec.archive}",
        archive=spec.archive,
        version=(spec.previous_version or 0) + 1,
        previous_version=spec.previous_version,
        run_id=spec.run_id,
        delivery=delivery,
        computed_at=_moment(artifacts["explain"].sealed_at),
        captured_from=_day(min(captured, default=None)),
        captured_to=_day(max(captured, default=None)),
        finding=_finding(len(points), noise, clusters, len(labels), changes, spec.previous_version),
        images=len(points),
        noise=noise,
        noise_share=noise / len(points) if points else 0.0,
        labels_given=sum(p.given and p.label is not None for p in points),
        labels_predicted=sum(not p.given and p.label is not None for p in points),
        alerts=alerts.model_dump(mode="json")["alerts"],
        alerts_not_compared=alerts.not_compared,
        queue=_queue(queue[:_QUEUE_SHOWN], points),
        queue_length=len(queue),
        changes=changes,
        clusters=clusters,
        classes=classes,
        deliveries=[Count(name, n) for name, n in sorted(deliveries.items())],
        ledger=Ledger.model_validate(artifacts["embed"].facts["ledger"]),
        quarantined=_quarantined(run, observations),
        duplicates=_duplicates(observations),
        assets=rank_assets(
            courses,
            {c.cluster_id: c.top_label for c in clusters},
            born,
            read_decisions(run.store, spec.archive, decisions_up_to),
            _born_in(run),
        ),
        asset_rule=SCORE_RULE,
        grades=[
            *(Grade(label, codes.grade(label), codes.source(label)) for label in sorted(labels)),
            *(
                Grade(f"cluster {c.cluster_id}", own, "table" if codes.of_cluster(c.cluster_id) == own else "people")
                for c in clusters
                if (own := _graded(c, codes)) is not None
            ),
        ],
        unused_grades=codes.unused(
            labels | {c.severity for c in clusters if c.severity}, [c.cluster_id for c in clusters]
        ),
        unassigned_images=len(without_asset),
        periods=periods,
        looks_of_period=looks_of_period,
        over_time=over_time,
        asset_courses=asset_courses(courses),
        transitions=all_rows(courses),
        model=artifacts["embed"].facts["model"],
        model_card=card.model_dump(mode="json", exclude={"weights", "reference"}),
        images_root=spec.images,
        settings=spec.settings.model_dump(mode="json"),
        map=artifacts["cluster"].facts,
        recall=json.loads(run.read("index", "recall.json")),
        stages=_stages(run),
    )


def gather_courses(run: Run) -> tuple[list[Course], dict[int, str | None], set[int]]:
    """What assets are ranked by: their courses, the most frequent label of each cluster, the clusters that are new."""
    points = gather_points(run)
    rows = run.read_table("cluster", "clusters.parquet").to_pylist()
    clusters = _clusters(run, points, [row for row in rows if row["status"] != "died"])
    before, _ = _since_previous(run, rows)
    observations = run.read_table("catalog", "observations.parquet").to_pylist()
    courses, _, born = _courses(run, points, observations, clusters, before)
    return courses, {c.cluster_id: c.top_label for c in clusters}, born


def _courses(
    run: Run, points: list[Point], observations: list[Row], clusters: list[Cluster], before: set[str] | None
) -> tuple[list[Course], list[Look], set[int]]:
    """The course of every asset, the looks of no asset, and the clusters that are new."""
    settings = run.spec.settings.report
    codes = CodeTable.of(settings)
    # Everything is born in a first version; that says nothing about where to go.
    born = {c.cluster_id for c in clusters if c.status == "born"} if before is not None else set()
    grades: dict[int | None, float] = {c.cluster_id: codes.grade(c.top_label) for c in clusters}
    # The label of a new kind is that of the nearest known one, and its grade may hide it; but another sound surface is
    # no new kind of damage.
    grades |= {
        c.cluster_id: max(grades[c.cluster_id], codes.others)
        for c in clusters
        if c.cluster_id in born and not _plainly_sound(c, codes)
    }
    # What somebody has graded after looking at it goes before all.
    by_hand: dict[int | None, float] = {c.cluster_id: own for c in clusters if (own := _graded(c, codes)) is not None}
    seen = {row["observation_id"]: row for row in observations}
    found: tuple[list[Look], list[Look]] = ([], [])
    for p in points:
        row = seen[p.observation_id]
        found[p.asset_id is None].append(
            Look(
                observation_id=p.observation_id,
                asset_id=p.asset_id or "",
                inspection=inspection_of(row),
                cluster_id=p.cluster_id,
                label=p.label,
                severity=grade_of_image(
                    codes.grade(p.label), p.given, grades.get(p.cluster_id), by_hand.get(p.cluster_id)
                ),
                new=before is None or p.observation_id not in before,
                delivery=row["delivery"],
                element=row["element"],
                position_m=row["position_m"],
                clock=row["clock"],
                tile=None
                if row["tile_x"] is None
                else (row["tile_x"], row["tile_y"], row["tile_width"], row["tile_height"]),
                captured_at=row["captured_at"],
                photo=f"{row['file']}#{row['frame']}",
                film=None if row["frame_time_s"] is None else (row["container"], row["file"]),
                film_time_s=row["frame_time_s"] or 0.0,
            )
        )
    return follow(found[False], SamePlace(settings.same_place_m, settings.same_place_clock)), found[True], born


def _born_in(run: Run) -> dict[int, int]:
    """Cluster -> the version in which it came as something new, or came again; others are parts of older ones."""
    ledger = run.read_table("cluster", "ledger.parquet").to_pylist()  # oldest first
    return {row["to_cluster_id"]: row["version"] for row in ledger if row["event"] in ("born", "returned")}


def _graded(cluster: Cluster, codes: CodeTable) -> float | None:
    """What the table says of this very cluster, or else the severity that somebody noted; None without either."""
    own = codes.of_cluster(cluster.cluster_id)
    return codes.of_remark(cluster.severity) if own is None else own


def _plainly_sound(cluster: Cluster, codes: CodeTable) -> bool:
    sound = sum(label.images for label in cluster.labels if label.name != UNLABELLED and codes.grade(label.name) == 0)
    return sound >= _PLAINLY * cluster.size


def _clusters(run: Run, points: list[Point], rows: list[Row]) -> list[Cluster]:
    of_cluster: dict[int, list[Point]] = {row["cluster_id"]: [] for row in rows}
    for point in points:
        if point.cluster_id is not None:
            of_cluster[point.cluster_id].append(point)
    by_id = {p.observation_id: p for p in points}
    shown: dict[int, list[Row]] = {}
    for row in run.read_table("explain", "explanations.parquet").to_pylist():
        shown.setdefault(row["cluster_id"], []).append(row)
    ledger = run.read_table("cluster", "ledger.parquet").to_pylist()
    remarks = Remarks.model_validate_json(run.read("cluster", "remarks.json"))
    clusters = []
    for row in sorted(rows, key=lambda r: r["cluster_id"]):
        members = of_cluster[row["cluster_id"]]
        pictures = sorted(shown.get(row["cluster_id"], []), key=lambda r: r["rank"])
        faithfulness = [p["faithfulness"] for p in pictures if p["faithfulness"] is not None]
        clusters.append(
            Cluster(
                cluster_id=row["cluster_id"],
                status=row["status"],
                size=row["size"],
                share=row["size"] / len(points),
                top_label=row["top_label"],
                purity=row["purity"],
                confidence=row["confidence"],
                novelty=row["novelty"],
                new_share=row["new_share"],
                first_version=row["first_version"],
                map_artefact=row["map_artefact"],
                reappears=row["reappears"],
                explained_by=row["explained_by"],
                labels=_counts(p.label or UNLABELLED for p in members),
                assets=_counts(p.asset_id for p in members if p.asset_id is not None),
                medoid_file=by_id[pictures[0]["observation_id"]].place if pictures else None,
                faithfulness=sum(faithfulness) / len(faithfulness) if faithfulness else None,
                row=[
                    Shown(
                        rank=p["rank"],
                        observation_id=p["observation_id"],
                        file=by_id[p["observation_id"]].place,
                        label=by_id[p["observation_id"]].label,
                        similarity=p["similarity"],
                        picture_key=p["picture_key"],
                        heatmap_key=p["heatmap_key"],
                    )
                    for p in pictures
                ],
                name=remarks.name(row["cluster_id"]),
                severity=remarks.severity(row["cluster_id"]),
                notes=[f"{r.note} ({r.said_by}, {_day(r.said_at)})" for r in remarks.of(row["cluster_id"]) if r.note],
                history=tell_history(row["cluster_id"], ledger),
            )
        )
    return clusters


def _queue(rows: list[Row], points: list[Point]) -> list[Queued]:
    wanted = {row["observation_id"] for row in rows}
    files = {p.observation_id: p.place for p in points if p.observation_id in wanted}
    kept = ("rank", "observation_id", "unlike", "group_size", "is_new", "cluster_id", "label", "asset_id")
    return [
        Queued(file=files[row["observation_id"]], group=row["group"] or 0, **{name: row[name] for name in kept})
        for row in rows
    ]


def _counts(names: Iterable[str]) -> list[Count]:
    return [Count(name, n) for name, n in sorted(Counter(names).items(), key=lambda x: (-x[1], x[0]))]


def _classes(points: list[Point], clusters: list[Cluster]) -> list[ClassRow]:
    cells = Counter((p.label or UNLABELLED, p.cluster_id) for p in points)
    rows = []
    for label in sorted({label for label, _ in cells}):
        inside = {c.cluster_id: n for c in clusters if (n := cells[label, c.cluster_id])}
        noise = cells[label, None]
        main = [c.cluster_id for c in clusters if c.labels and c.labels[0].name == label]
        rows.append(ClassRow(label, sum(inside.values()) + noise, main, inside, noise))
    return rows


def _since_previous(run: Run, clusters: list[Row]) -> tuple[set[str] | None, list[Change]]:
    """Observations of the previous version (None when this is the first), and what changed."""
    previous = run.previous()
    if previous is None or run.spec.previous_version is None:
        return None, []
    seen = set(previous.read_table("cluster", "points.parquet").column("observation_id").to_pylist())
    rows = previous.read_table("cluster", "clusters.parquet").select(["cluster_id", "size"]).to_pylist()
    sizes = {row["cluster_id"]: row["size"] for row in rows}
    lineage = run.read_table("cluster", "lineage.parquet").to_pylist()
    return seen, describe_changes(clusters, lineage, sizes, run.spec.previous_version)


def _quarantined(run: Run, observations: list[Row]) -> list[Quarantined]:
    found = [
        Quarantined(_place(row), row["reason"], QUARANTINE_REASONS.get(row["reason"], ""), row["detail"], "catalog")
        for row in observations
        if row["status"] == "quarantined"
    ]
    failed = {row["image_id"]: row for row in run.read_table("embed", "failed.parquet").to_pylist()}
    for row in observations:
        if row["status"] == "ok" and (failure := failed.get(row["image_id"])):
            reason = failure["reason"]
            meaning = QUARANTINE_REASONS.get(reason, "")
            found.append(Quarantined(_place(row), reason, meaning, failure["detail"], failure["stage"]))
    return sorted(found, key=lambda q: (q.reason, q.file))


def _place(row: Row) -> str:
    """The file of an observation, with the tile's place or the second of the video where it is one."""
    return place(Source.of_row(row), row["frame_time_s"], row["position_m"])


def _duplicates(observations: list[Row]) -> list[Duplicate]:
    first: dict[tuple[str, str | None], str] = {}
    anywhere: dict[str, str] = {}
    for row in observations:
        if row["status"] == "ok" and row["image_id"] is not None:
            first.setdefault((row["image_id"], row["asset_id"]), row["file"])
            anywhere.setdefault(row["image_id"], row["file"])
    return [
        Duplicate(_place(row), first.get((row["image_id"], row["asset_id"]), anywhere.get(row["image_id"] or "")))
        for row in observations
        if row["status"] == "duplicate"
    ]


def _finding(
    n: int, noise: int, clusters: list[Cluster], n_labels: int, changes: list[Change], previous: int | None
) -> str:
    if n == 0:
        return "No image could be placed on the map."
    if not clusters:
        if n == 1:
            return "One image cannot form a cluster; it is on the map by itself."
        return f"None of the {n:,} images forms a cluster: nothing lies close enough together."
    classes = f" of {_many(n_labels, 'predefined class', 'predefined classes')}" if n_labels else ""
    text = f"{_many(n, 'image', 'images')}{classes} {'falls' if n == 1 else 'fall'} into "
    text += _many(len(clusters), "cluster", "clusters")
    text += f"; {noise / n:.1%} fit none." if noise else "; every image fits one."
    if previous is None:
        return f"{text} This is the archive's first version."
    parts = []
    labels = {c.cluster_id: c.top_label for c in clusters}
    sizes = {c.cluster_id: c.size for c in clusters}
    for status, one, many in (
        ("born", "is new", "are new"),
        ("returned", "is back again", "are back again"),
        ("split", "has split off", "have split off"),
        ("merged", "is a merger", "are mergers"),
        ("grown", "has grown", "have grown"),
        ("shrunk", "has shrunk", "have shrunk"),
        ("died", "is gone", "are gone"),
        ("unknown", "cannot be followed", "cannot be followed"),
    ):
        ids = list(dict.fromkeys(change.cluster_id for change in changes if change.status == status))
        if status == "born" and len(ids) == 1:
            nearest = f", nearest to {labels[ids[0]]}" if labels[ids[0]] else ""
            parts.append(f"cluster {ids[0]} is new ({_many(sizes[ids[0]], 'image', 'images')}{nearest})")
        elif ids:
            parts.append(f"{_many(len(ids), 'cluster', 'clusters')} {one if len(ids) == 1 else many}")
    since = f"Since version {previous}: {', '.join(parts)}." if parts else f"Nothing is new since version {previous}."
    return f"{text} {since}"


def _many(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _stages(run: Run) -> list[StageFacts]:
    found = []
    for stage in _TIMED_STAGES:
        if stage in run.spec.stages:
            artifact: Artifact = run.artifact(stage)
            found.append(
                StageFacts(
                    stage=stage,
                    seconds=artifact.seconds,
                    attempt=artifact.attempt,
                    sealed_at=_moment(artifact.sealed_at),
                    code_version=artifact.code_version,
                    counts=artifact.counts,
                    facts={key: value for key, value in artifact.facts.items() if key != "ledger"},
                    artifact_sha256=run.store.digest(f"{run.key}/{stage}/artifact.json"),
                )
            )
    return found


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _day(moment: datetime | None) -> str | None:
    return None if moment is None else moment.strftime("%Y-%m-%d")

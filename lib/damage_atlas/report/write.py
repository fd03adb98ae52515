"""The stage: gather, draw, render, seal."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from damage_atlas.contracts import Artifact
from damage_atlas.images import Limits, preprocess
from damage_atlas.parts import MapParts, map_in_threads
from damage_atlas.report.assets import assets_table
from damage_atlas.report.changes import PICTURED
from damage_atlas.report.facts import Cluster, Facts, Point
from damage_atlas.report.figures import draw_map, draw_rows
from damage_atlas.report.gather import INPUT_STAGES, gather_facts, gather_points
from damage_atlas.report.page import class_looks, cluster_centres, render_page, visible
from damage_atlas.report.palette import look
from damage_atlas.report.sampling import MAX_DRAWN_POINTS, draw_order
from damage_atlas.report.thumbnails import make_pictures, make_sheets
from damage_atlas.report.transitions import transitions_table
from damage_atlas.store import Run, Stage
from damage_atlas.store.decisions import last_decision
from damage_atlas.store.forgotten import refuse_forgotten
from damage_atlas.store.runs import read_output

# A page of 60 clusters with 20 pictures each must still open on a phone.
_FULL_SIZE_CLUSTERS = 24
_SMALL_PX = 96
_FIGURE_CELL_PX = 96
_FIGURE_ROWS = 24  # more do not fit a printed page; the HTML page shows all


def write_report(run: Run, map_parts: MapParts = map_in_threads) -> Artifact:
    """Write index.html, figures/, report.json and tables; returns the artifact at once when it is sealed.

    The same run gives the same bytes: every time and number comes from a sealed stage or a decision in the plan.

    Raises:
        ContractError: a stage to the left is not sealed, or an output is not what was sealed.
        StoreError: the store did not answer.
    """
    stage = run.stage("report")
    if (sealed := stage.sealed) is not None:
        return sealed
    refuse_forgotten(run)
    # Decisions may be added while the report is made; every attempt takes those of the first.
    plan = stage.plan({"last_decision": last_decision(run.store, run.spec.archive)})
    points = gather_points(run)
    facts = gather_facts(run, points, plan["last_decision"])
    drawn = _drawn_points(facts, points)
    wanted = drawn[: run.spec.settings.report.hover_pictures]
    sheets = make_sheets(
        wanted,
        run.spec.images,
        Limits.of(run.spec.settings.catalog),
        run.spec.settings.report.thumbnail_size,
        map_parts,
    )
    pictures = _pictures(run, facts) | _looked_at(run, facts, points, map_parts)
    page = render_page(facts, drawn, sheets, len(wanted), pictures)
    stage.write("index.html", page)
    stage.write_json("report.json", facts.document())
    stage.write_table("assets.parquet", assets_table(facts.assets))
    stage.write_table("transitions.parquet", transitions_table(facts.transitions))
    _write_figures(stage, facts, drawn, pictures)
    return stage.seal(
        INPUT_STAGES,
        {"in": len(points), "out": len(points), "failed": 0},
        {
            "page_bytes": len(page),
            "points_drawn": len(drawn),
            "hover_pictures": len(wanted) - len(sheets.missing),
            "hover_pictures_missing": len(sheets.missing),
            "finding": facts.finding,
            "assets": len(facts.assets),
            "progressions": sum(row["kind"] == "progression" for row in facts.transitions),
            "last_decision": plan["last_decision"],
        },
    )


def _drawn_points(facts: Facts, points: Sequence[Point]) -> list[Point]:
    shown = {item.observation_id for cluster in facts.clusters for item in cluster.row}
    first = [i for i, p in enumerate(points) if p.observation_id in shown]
    clusters = np.array([-1 if p.cluster_id is None else p.cluster_id for p in points], dtype=np.int64)
    return [points[i] for i in draw_order(clusters, first)[:MAX_DRAWN_POINTS]]


def _pictures(run: Run, facts: Facts) -> dict[str, bytes]:
    """Pictures and heat maps of all rows, as they were sealed; made smaller where there are very many."""
    keys = sorted({key for c in facts.clusters for item in c.row for key in (item.picture_key, item.heatmap_key)})
    sealed = {output.key: output for output in run.artifact("explain").outputs.values()}
    pictures = {key: read_output(run.store, sealed[f"{run.key}/{key}"]) for key in keys}
    if len(facts.clusters) <= _FULL_SIZE_CLUSTERS:
        return pictures
    return {key: _smaller(data) for key, data in pictures.items()}


def _looked_at(run: Run, facts: Facts, points: Sequence[Point], map_parts: MapParts) -> dict[str, bytes]:
    """Pictures of alerts and of the queue of noise, by observation_id."""
    wanted = {item.observation_id for item in facts.queue}
    wanted |= {item["observation_id"] for a in facts.alerts for item in (a["medoid"], *a["nearest"])}
    shown = [p for p in points if p.observation_id in wanted]
    return make_pictures(shown, run.spec.images, Limits.of(run.spec.settings.catalog), _SMALL_PX, map_parts)


def _smaller(picture: bytes) -> bytes:
    with Image.open(io.BytesIO(picture)) as image:
        small = image.convert("RGB").resize((_SMALL_PX, _SMALL_PX), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=78, optimize=True)
    return sink.getvalue()


def _write_figures(stage: Stage, facts: Facts, drawn: Sequence[Point], pictures: dict[str, bytes]) -> None:
    xy_N2 = np.array([(p.x, p.y) for p in drawn], dtype=np.float64).reshape(-1, 2)
    label_index = {row.label: i for i, row in enumerate(facts.classes)}
    class_of = [label_index.get(p.label) if p.label is not None else None for p in drawn]
    names = {i: f"{visible(row.label)} ({row.images:,})" for i, row in enumerate(facts.classes) if i in set(class_of)}
    stage.write(
        "figures/class-map.png",
        draw_map(xy_N2, class_of, names, class_looks(facts), f"{len(names)} predefined classes"),
    )
    stage.write(
        "figures/cluster-map.png",
        draw_map(
            xy_N2,
            [p.cluster_id for p in drawn],
            {c.cluster_id: f"{c.cluster_id} ({c.size:,})" for c in facts.clusters},
            {c.cluster_id: look(c.cluster_id) for c in facts.clusters},
            f"{len(facts.clusters)} clusters",
            cluster_centres(facts, drawn),
        ),
    )
    stage.write("figures/pictures.png", _draw_rows(facts, pictures, "Sample and nearest images", heat=False))
    # Vectors that were given with --vectors have no network that could be asked what it goes by.
    given = any(item.heatmap_key == item.picture_key for cluster in facts.clusters for item in cluster.row)
    if not given:
        stage.write(
            "figures/heat-maps.png", _draw_rows(facts, pictures, "What the model goes by (Grad-CAM)", heat=True)
        )


def _draw_rows(facts: Facts, pictures: dict[str, bytes], title: str, heat: bool) -> bytes:
    def row(cluster: Cluster) -> list[np.ndarray]:
        keys = [item.heatmap_key if heat else item.picture_key for item in cluster.row]
        return [_pixels(pictures[key]) for key in keys]

    shown = figure_clusters(facts)
    if len(shown) < len(facts.clusters):
        title += f" ({len(shown)} of {len(facts.clusters)} clusters)"
    return draw_rows([(str(c.cluster_id), row(c)) for c in shown], title, _FIGURE_CELL_PX)


def figure_clusters(facts: Facts) -> list[Cluster]:
    """The clusters that have a row in the figures: those that changed, then the largest; in the order of their ids."""
    news = {change.cluster_id: i for i, change in enumerate(facts.changes) if change.status in PICTURED}
    first = sorted(facts.clusters, key=lambda c: (news.get(c.cluster_id, len(news)), -c.size, c.cluster_id))
    return sorted(first[:_FIGURE_ROWS], key=lambda c: c.cluster_id)


def _pixels(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as image:
        return preprocess(np.asarray(image.convert("RGB")), _FIGURE_CELL_PX)

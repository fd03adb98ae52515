"""How a published version of the demo archive compares with the truth, which no stage ever reads."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from damage_atlas.cluster.confidence import CONFIDENT
from damage_atlas.metrics import agreement
from damage_atlas.store import Run, Store, read_version

_CRACK_PX = 100  # of a crack must lie in a tile before the tile counts as one that shows it

Row = dict[str, Any]


def score_against_truth(out: Path, archive: str, version: int | None = None) -> dict[str, Any]:
    """Compare a version with ``out/truth.csv``; facts only, shares between 0 and 1.

    Args:
        out: the folder that ``make_demo`` has filled; its store is ``out/store``.
        version: by default the current one.

    Returns:
        ``ari_modes``: ARI of the clusters with the hidden modes, over whole images that show one; ``ari_classes``:
        what the predefined classes alone would score there; ``modes`` that images show, and how many of these are
        the most frequent one of a confident cluster (``confident_modes``); ``planted`` images of the new kind, how
        many of them lie ``in_new_clusters``, and those ``new_clusters`` of which they are the majority;
        ``crack_tiles`` of large photos, and how many of them lie ``in_crack_clusters``; ``wrong_status``: files whose
        status or reason of quarantine is not the one that the truth gives them.
    """
    store = Store(out / "store")
    run = Run.load(store.uri(read_version(store, archive, version).run_key))
    truth = read_truth(out)
    observations = run.read_table("catalog", "observations.parquet").to_pylist()
    where = {row["observation_id"]: row for row in observations}
    clusters = {row["cluster_id"]: row for row in run.read_table("cluster", "clusters.parquet").to_pylist()}
    points = run.read_table("cluster", "points.parquet").to_pylist()

    whole = [(p, truth[where[p["observation_id"]]["file"]]) for p in points if _tile(where, p)["tile_x"] is None]
    shown = [(p, row) for p, row in whole if row["mode"]]
    found = [p["cluster_id"] for p, _ in shown]
    planted = [p["cluster_id"] for p, row in shown if row["planted"] == "new_kind"]
    sizes = Counter(p["cluster_id"] for p in points)
    born = {c for c, row in clusters.items() if row["status"] == "born"}
    crack_tiles = [
        p["cluster_id"]
        for p in points
        if _tile(where, p)["tile_x"] is not None and _crack_px(_tile(where, p), truth) >= _CRACK_PX
    ]
    return {
        "images": len(shown),
        "ari_modes": agreement([row["mode"] for _, row in shown], found)["ari"],
        "ari_classes": agreement([row["mode"] for _, row in shown], [row["class"] for _, row in shown])["ari"],
        "modes": len({row["mode"] for _, row in shown}),
        "confident_modes": len(_confident_modes(clusters, [(p["cluster_id"], row["mode"]) for p, row in shown])),
        "planted": len(planted),
        "in_new_clusters": sum(c in born for c in planted),
        "new_clusters": sorted(c for c, n in Counter(planted).items() if c in born and n > sizes[c] / 2),
        "crack_tiles": len(crack_tiles),
        "in_crack_clusters": sum(c is not None and clusters[c]["top_label"] == "crack" for c in crack_tiles),
        "wrong_status": _wrong_statuses(observations, truth),
    }


def read_truth(out: Path) -> dict[str, dict[str, str]]:
    """The truth of the archive's files, by their name below ``archive/``."""
    with (out / "truth.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {row["file"].removeprefix("archive/"): row for row in rows if row["file"].startswith("archive/")}


def _confident_modes(clusters: dict[int, Row], shown: list[tuple[int | None, str]]) -> set[str]:
    modes: dict[int, Counter[str]] = {}
    for cluster, mode in shown:
        if cluster is not None and (clusters[cluster]["confidence"] or 0) >= CONFIDENT:
            modes.setdefault(cluster, Counter())[mode] += 1
    return {max(sorted(counts), key=lambda mode: counts[mode]) for counts in modes.values()}


def _tile(where: dict[str, Row], point: Row) -> Row:
    return where[point["observation_id"]]


def _crack_px(tile: Row, truth: dict[str, dict[str, str]]) -> int:
    """Length of crack inside a tile: the longer sides of its boxes, cut to the tile, in pixels."""
    left, top = tile["tile_x"], tile["tile_y"]
    right, bottom = left + tile["tile_width"], top + tile["tile_height"]
    length = 0
    for box in truth[tile["file"]]["boxes"].split(";"):
        x0, y0, x1, y1 = (int(value) for value in box.split())
        width, height = min(x1, right) - max(x0, left), min(y1, bottom) - max(y0, top)
        length += max(width, height) if width > 0 and height > 0 else 0
    return length


def _wrong_statuses(observations: list[Row], truth: dict[str, dict[str, str]]) -> list[str]:
    wrong = []
    for row in observations:
        expected = truth[row["file"]]
        if (row["status"], row["reason"] or "") != (expected["status"], expected["reason"]):
            wrong.append(
                f"{row['file']}: {row['status']} {row['reason']}, not {expected['status']} {expected['reason']}"
            )
    return sorted(set(wrong))

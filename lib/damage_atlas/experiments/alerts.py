"""Alert rates on steel-neu: each class left out in turn, then delivered in groups of 3, 5, 12 and 50; and quiet runs.

    python -m damage_atlas.experiments.alerts $DAMAGE_ATLAS_DATA/steel-neu var/alerts

trains six models, one for each class that is left out, on 40% of the other images. Version 1 of an archive holds 600
images of the other classes; a delivery brings 30 more, and of the class that is left out as many as are asked for. The
map, the clusters, their ids and the alerts are made as the cluster stage makes them.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from damage_atlas.cluster.alerts import Cluster, find_alerts
from damage_atlas.cluster.density import choose_eps, find_clusters, split_clusters
from damage_atlas.cluster.passports import match_clusters
from damage_atlas.cluster.tsne import make_map
from damage_atlas.experiments.steel import CLASSES, Embedded, embed_without
from damage_atlas.neighbours import Floats, Ints, exact_neighbours, without_self
from damage_atlas.spec import ClusterSpec

_FIRST, _QUIET = 600, 30
SIZES = (0, 3, 5, 12, 50)


@dataclass(frozen=True)
class Version:
    """A clustering: rows of the embedded images, and where they lie."""

    rows: Ints
    positions_N2: Floats
    labels_N: Ints
    clusters: dict[int, int | None]  # row -> persistent id
    next_id: int


def first_version(images: Embedded, rows: Ints, spec: ClusterSpec) -> Version:
    """Cluster the archive for the first time."""
    positions, labels = _clustered(images.vectors_ND[rows], spec, None)
    matching = match_clusters(_named(rows, labels), None, 1)
    return Version(rows, positions, labels, _ids(rows, labels, matching.ids), matching.next_id)


def deliver(images: Embedded, before: Version, new: Ints, spec: ClusterSpec) -> list[tuple[str, int, int]]:
    """The alerts that a delivery raises: kind, new images, how many of these are of the class that was left out."""
    rows = np.concatenate([before.rows, new])
    start = np.full((len(rows), 2), np.nan)
    start[: len(before.rows)] = before.positions_N2
    vectors = images.vectors_ND[rows]
    _, labels = _clustered(vectors, spec, start)
    old = {str(row): cluster for row, cluster in before.clusters.items()}
    matching = match_clusters(_named(rows, labels), old, before.next_id)
    in_no_cluster = np.array([before.clusters.get(int(row)) is None for row in rows])
    near = without_self(exact_neighbours(vectors, 11), 10).ids_NK
    asked = []
    for label, cluster in matching.ids.items():
        inside = np.flatnonzero(labels == label)
        artefact = bool((labels[near[inside]] == label).mean() < 0.5)
        asked.append(Cluster(cluster, matching.statuses[cluster], inside, int(in_no_cluster[inside].sum()), artefact))
    is_new = np.arange(len(rows)) >= len(before.rows)
    found = find_alerts(vectors, is_new, images.vectors_ND[before.rows], asked, int(in_no_cluster.sum()), spec)
    left_out = np.array(images.classes)[rows] == images.left_out
    return [(f.kind, len(f.rows), int(left_out[f.rows].sum())) for f in found]


def _clustered(vectors_ND: Floats, spec: ClusterSpec, start_N2: Floats | None) -> tuple[Floats, Ints]:
    near = without_self(exact_neighbours(vectors_ND, 91), 90)
    positions = make_map(vectors_ND, near, spec, start_N2)
    eps = choose_eps(positions, spec.min_neighbours)
    found = find_clusters(positions, eps, spec.min_neighbours)
    assert spec.split_apart is not None
    return positions, split_clusters(found, positions, vectors_ND, eps, spec.min_neighbours, spec.split_apart).labels_N


def _named(rows: Ints, labels_N: Ints) -> dict[str, int]:
    return {str(row): int(label) for row, label in zip(rows, labels_N, strict=True)}


def _ids(rows: Ints, labels_N: Ints, ids: dict[int, int]) -> dict[int, int | None]:
    return {int(row): ids.get(int(label)) for row, label in zip(rows, labels_N, strict=True)}


def trials(images: Embedded, archives: int, each: dict[int, int], spec: ClusterSpec) -> Iterator[dict[str, object]]:
    """Deliveries to several archives: ``each`` says how many of each group size an archive gets."""
    known = np.flatnonzero(np.array(images.classes) != images.left_out)
    unseen = np.flatnonzero(np.array(images.classes) == images.left_out)
    for archive in range(archives):
        draw = np.random.default_rng(archive)
        order = draw.permutation(known)
        before = first_version(images, order[:_FIRST], spec)
        for size, repeats in each.items():
            for _ in range(repeats):
                quiet = draw.permutation(order[_FIRST:])[:_QUIET]
                group = draw.permutation(unseen)[:size]
                alerts = deliver(images, before, np.concatenate([quiet, group]), spec)
                yield {"class": images.left_out, "archive": archive, "size": size, "alerts": alerts}


def summary(rows: list[dict[str, object]]) -> str:
    """A table for docs/results.md: rate of deliveries that raise an alert about the group, by class and size."""
    named: Counter[tuple[object, object]] = Counter()
    false: Counter[tuple[object, object]] = Counter()
    asked: Counter[tuple[object, object]] = Counter()
    for row in rows:
        key = (row["class"], row["size"])
        asked[key] += 1
        alerts: list[tuple[str, int, int]] = row["alerts"]  # type: ignore[assignment]
        named[key] += any(of_group > images / 2 for _, images, of_group in alerts)
        false[key] += any(of_group <= images / 2 for _, images, of_group in alerts)
    lines = ["| left out | quiet: false alarms | " + " | ".join(f"{s} images" for s in SIZES[1:]) + " |"]
    for name in (*CLASSES, None):
        cells = []
        for size in SIZES:
            keys = [key for key in asked if key[1] == size and name in (None, key[0])]
            total = sum(asked[key] for key in keys)
            hits = sum((named if size else false)[key] for key in keys)
            cells.append(f"{hits} of {total}" if total else "–")
        lines.append(f"| {name or 'all'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not trained yet, deliver, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="the folder steel-neu")
    parser.add_argument("out", type=Path, help="where models and outcomes are kept")
    parser.add_argument("--archives", type=int, default=4, help="archives for each class that is left out")
    parser.add_argument("--quiet", type=int, default=5, help="quiet deliveries to each archive")
    parser.add_argument("--groups", type=int, default=2, help="deliveries of each group size to each archive")
    arguments = parser.parse_args()
    spec = ClusterSpec(threads=1)
    each = {size: arguments.groups if size else arguments.quiet for size in SIZES}
    rows: list[dict[str, object]] = []
    for name in CLASSES:
        kept = arguments.out / f"alerts-{name}.jsonl"
        if not kept.exists():
            images = embed_without(name, arguments.data, arguments.out)
            found = [json.dumps(row) for row in trials(images, arguments.archives, each, spec)]
            kept.write_text("\n".join(found) + "\n")  # last: what is there is whole
        rows += [json.loads(line) for line in kept.read_text().splitlines()]
        print(f"{name}: done", flush=True)
    print(summary(rows))


if __name__ == "__main__":
    main()

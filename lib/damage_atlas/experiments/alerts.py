"""Alert rates on steel-neu: each class left out in turn, then delivered in groups of 3, 5, 12 and 50; and quiet runs.

    python -m damage_atlas.experiments.alerts $DAMAGE_ATLAS_DATA/steel-neu var/alerts

trains six models, one for each class that is left out, on 40% of the other images. Version 1 of an archive holds 600
images of the other classes; a delivery brings 30 more, and of the class that is left out as many as are asked for. With
`--map` each delivery goes through the whole cluster stage; without it places and drift alone are looked at, which need
no map, in many more deliveries.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from damage_atlas.cluster.alerts import Earlier, Images, find_alerts
from damage_atlas.contracts import Alerts
from damage_atlas.experiments.staged import StagedArchive
from damage_atlas.experiments.steel import CLASSES, Embedded, embed_without
from damage_atlas.neighbours import Ints
from damage_atlas.spec import ClusterSpec, Settings
from damage_atlas.store import Run

_FIRST, _QUIET = 600, 30
SIZES = (0, 3, 5, 12, 50)
_SETTINGS = Settings(cluster=ClusterSpec(threads=1, resamples=0))

Told = tuple[str, int, int]  # kind of an alert, its new images, how many of these are of the class that was left out


def trials(images: Embedded, archives: int, each: dict[int, int], with_map: bool) -> Iterator[dict[str, Any]]:
    """Deliveries to several archives: ``each`` says how many of each group size an archive gets."""
    classes = np.array(images.classes)
    known, unseen = np.flatnonzero(classes != images.left_out), np.flatnonzero(classes == images.left_out)
    for number in range(archives):
        draw = np.random.default_rng(number)
        order = draw.permutation(known)
        before = order[:_FIRST]
        staged = StagedArchive(images.store, f"steel-{images.left_out}-{number}", images.card)
        if with_map:
            first = staged.cluster("first", _ids(before), images.vectors_ND[before], _SETTINGS)
            if first.spec.previous_version is None:
                staged.publish(first)
        for size, repeats in each.items():
            for repeat in range(repeats):
                quiet = draw.permutation(order[_FIRST:])[:_QUIET]
                new = np.concatenate([quiet, draw.permutation(unseen)[:size]])
                rows = np.concatenate([before, new])
                if with_map:
                    run = staged.cluster(f"{size}-{repeat}", _ids(rows), images.vectors_ND[rows], _SETTINGS)
                    told = _read(run, classes, images.left_out)
                else:
                    told = _found(images, before, rows, classes)
                yield {"class": images.left_out, "archive": number, "size": size, "alerts": told}


def _found(images: Embedded, before: Ints, rows: Ints, classes: np.ndarray) -> list[Told]:
    is_new = np.arange(len(rows)) >= len(before)
    run = Images(images.vectors_ND[rows], is_new, ~is_new, rows)
    found = find_alerts(run, Earlier(images.vectors_ND[before], before), [], _SETTINGS.cluster)
    return [(f.kind, len(f.rows), int((classes[rows[f.rows]] == images.left_out).sum())) for f in found]


def _read(run: Run, classes: np.ndarray, left_out: str) -> list[Told]:
    found = Alerts.model_validate_json(run.read("cluster", "alerts.json"))
    return [
        (a.kind, a.images, sum(classes[int(image_id)] == left_out for image_id in a.image_ids)) for a in found.alerts
    ]


def _ids(rows: Ints) -> list[str]:
    return [f"{row:06d}" for row in rows]


def summary(rows: list[dict[str, Any]]) -> str:
    """A table: deliveries that raise an alert about the group, by class and size; of quiet ones, that raise any."""
    hits: Counter[tuple[str, int]] = Counter()
    asked: Counter[tuple[str, int]] = Counter()
    for row in rows:
        key = (row["class"], row["size"])
        asked[key] += 1
        hits[key] += any(not row["size"] or of_group > images / 2 for _, images, of_group in row["alerts"])
    lines = ["| left out | quiet | " + " | ".join(f"{s} images" for s in SIZES[1:]) + " |"]
    for name in (*CLASSES, None):
        cells = []
        for size in SIZES:
            keys = [key for key in asked if key[1] == size and name in (None, key[0])]
            total = sum(asked[key] for key in keys)
            cells.append(f"{sum(hits[key] for key in keys)} of {total}" if total else "–")
        lines.append(f"| {name or 'all'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not trained yet, deliver, print the table."""
    parser = argparse.ArgumentParser(description="Alert rates on steel-neu, by class that was left out and group size.")
    parser.add_argument("data", type=Path, help="the folder steel-neu")
    parser.add_argument("out", type=Path, help="where models and outcomes are kept; what is there is not done again")
    parser.add_argument("--map", action="store_true", help="the whole cluster stage, in fewer deliveries")
    arguments = parser.parse_args()
    archives, quiet, groups = (4, 5, 2) if arguments.map else (10, 20, 5)
    each = {size: groups if size else quiet for size in SIZES}
    rows: list[dict[str, Any]] = []
    for name in CLASSES:
        kept = arguments.out / f"alerts-{name}{'-map' if arguments.map else ''}.jsonl"
        if not kept.exists():
            images = embed_without(name, arguments.data, arguments.out)
            found = [json.dumps(row) for row in trials(images, archives, each, arguments.map)]
            kept.write_text("\n".join(found) + "\n")  # last: what is there is whole
        rows += [json.loads(line) for line in kept.read_text().splitlines()]
        print(f"{name}: done", flush=True)
    print(summary(rows))


if __name__ == "__main__":
    main()

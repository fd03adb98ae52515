"""A few images of a kind that the demo's model has not learnt, planted among 100,000 others; the whole cluster stage.

    damage-atlas demo --out var/demo
    python -m damage_atlas.experiments.many var/demo var/many

The others are drawn by the demo's painters with another seed and embedded by its model. All but 100 of them are the
first version. Then come deliveries of those 100: alone, and with 12 and with 5 images of the planted kind, drawn anew
for each delivery. Assets and times play no part: each image is a moment of its own.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from damage_atlas.contracts import Alerts
from damage_atlas.demo import make_demo
from damage_atlas.demo.runs import DEMO_ARCHIVE
from damage_atlas.demo.truth import read_truth
from damage_atlas.errors import InputError
from damage_atlas.experiments.staged import StagedArchive
from damage_atlas.neighbours import Ints, read_vectors
from damage_atlas.pipeline import run_stage
from damage_atlas.progress import Progress
from damage_atlas.spec import CatalogSpec, ClusterSpec, Settings
from damage_atlas.store import Run, Store, start_run
from damage_atlas.store.versions import run_model

_IMAGES, _DELIVERED, _LOOKED_AT = 100_000, 100, 50
_SIZES = (12, 5)
_DRAWN_WITH = 1  # seed: none of these images is one that the model has learnt from


def many(
    demo: Path, work: Path, count: int = _IMAGES, draws: int = 1, spec: ClusterSpec | None = None
) -> Iterator[str]:
    """The lines that docs/results.md has as a table; what was made before is taken.

    Args:
        demo: a folder that ``damage-atlas demo --out`` has filled; its model embeds, its store keeps the runs.
        work: where the other images go.

    Raises:
        InputError: ``work`` holds pictures that were not all drawn, or another number of them.
    """
    store, settings = Store(demo / "store"), Settings(cluster=spec or ClusterSpec())
    run = _embedded(store, work, count)
    ids, vectors = read_vectors(run)
    planted_ids = _of_the_planted_kind(run, work)
    is_planted = np.isin(ids, sorted(planted_ids))
    others, kind = np.random.default_rng(0).permutation(np.flatnonzero(~is_planted)), np.flatnonzero(is_planted)
    if len(kind) < max(_SIZES):
        raise InputError(
            f"{count:,} pictures hold {len(kind)} of the planted kind, fewer than {max(_SIZES)}. Draw more."
        )
    archive = StagedArchive(store, f"many-{count}", run_model(run))

    def version(name: str, rows: Ints) -> Run:
        chosen = np.sort(rows)
        return archive.cluster(name, [ids[i] for i in chosen], vectors[chosen], settings)

    first = version("first", others[:-_DELIVERED])
    archive.publish(first)
    yield f"{len(others):,} others, {len(kind)} of the planted kind; first version: {_told(first)}"
    for size, draw in [(0, 0), *((size, draw) for size in _SIZES for draw in range(draws))]:
        group = np.random.default_rng((size, draw)).permutation(kind)[:size]
        later = version(f"with-{size}-{draw}", np.concatenate([others, group]))
        yield f"{_DELIVERED} others and {size} planted: {_told(later)}; {_found(later, {ids[i] for i in group})}"


def _embedded(store: Store, work: Path, count: int) -> Run:
    if not (work / "truth.csv").exists():
        if (work / "images").exists():
            raise InputError(f"{work} holds pictures that were not all drawn. Remove it, and start again.")
        with Progress("demo", "images", count) as progress:
            make_demo(
                work,
                size=count,
                seed=_DRAWN_WITH,
                photo_px=(512, 512),
                on_progress=lambda done, _: progress.add(done - progress.done),
            )
    if not count <= (found := sum(1 for _ in (work / "images").rglob("*.jpg"))) <= 1.5 * count:
        raise InputError(f"{work} holds {found:,} pictures. Choose another folder for {count:,}.")
    run = start_run(
        store,
        kind="recluster",
        archive=f"many-{count}-source",
        images=str(work / "images"),
        model=DEMO_ARCHIVE.model,
        settings=Settings(catalog=CatalogSpec(labels="none")),
        run_id="source",
    )
    for stage in ("catalog", "embed"):
        run_stage(run, stage)
    return run


def _of_the_planted_kind(run: Run, work: Path) -> set[str]:
    """No labelled image shows it."""
    planted = {f"archive/{file}" for file, row in read_truth(work).items() if row["planted"] == "new_kind"}
    rows = run.read_table("catalog", "observations.parquet", ["image_id", "file", "status"]).to_pylist()
    return {row["image_id"] for row in rows if row["status"] == "ok" and row["file"] in planted}


def _told(run: Run) -> str:
    facts = run.artifact("cluster").facts
    on_map = f"{facts['landmarks']:,} of {facts['images']:,} on the map, {facts['map']}"
    return f"{on_map}, {facts['clusters']} clusters, {facts['noise_share']:.1%} noise"


def _found(run: Run, planted: set[str]) -> str:
    alerts = Alerts.model_validate_json(run.read("cluster", "alerts.json")).alerts
    texts = [f"{alert.kind} of {len(planted & set(alert.image_ids))} planted in {alert.images}" for alert in alerts]
    told = f"{len(alerts)} alerts{': ' if texts else ''}{'; '.join(texts)}"
    if not planted:
        return told
    queue = run.read_table("cluster", "noise.parquet", ["image_id", "rank"]).to_pylist()
    ranks = sorted(row["rank"] for row in queue if row["image_id"] in planted)
    points = run.read_table("cluster", "points.parquet", ["image_id", "cluster_id"]).to_pylist()
    where = sorted({str(p["cluster_id"] or "noise") for p in points if p["image_id"] in planted})
    looked_at = sum(rank <= _LOOKED_AT for rank in ranks)
    return f"{told}; in {', '.join(where)}; in the queue of noise at {ranks}, {looked_at} within {_LOOKED_AT}"


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description="Images of an unseen kind planted among many.")
    parser.add_argument("demo", type=Path, help="the folder that `damage-atlas demo --out` has filled")
    parser.add_argument("work", type=Path, help="where the other images go")
    parser.add_argument("--images", type=int, default=_IMAGES)
    parser.add_argument("--draws", type=int, default=1, help="deliveries with each number of planted images")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("damage_atlas").setLevel(logging.INFO)
    for line in many(arguments.demo, arguments.work, arguments.images, arguments.draws):
        print(line, flush=True)


if __name__ == "__main__":
    main()

"""The demo archive through every stage in one process: what `make demo` does with Airflow and Ray, without either."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from damage_atlas.demo.truth import score_against_truth
from damage_atlas.pipeline import run_pipeline, summarize
from damage_atlas.spec import ArchiveSpec, CatalogSpec, ReportSpec, Settings, TrainSpec
from damage_atlas.store import Run, Store, start_run

logger = logging.getLogger(__name__)

# infra/archives/demo.yaml says the same; a test compares them.
DEMO_ARCHIVE = ArchiveSpec(
    archive="demo",
    images="demo/images/archive",
    model="demo",
    description="A made-up archive of concrete, steel and pipes, with hidden kinds of damage that nobody labelled.",
    tags=["demo"],
    training_images="demo/images/labelled",
    training_settings=Settings(
        catalog=CatalogSpec(labels="folder", groups="groups.csv"),
        # A demo must not take an hour: smaller pictures, fewer and larger steps than the paper's. Crops and a second
        # view of half of each batch keep the finer forms inside a class apart (docs/results.md has what each gives).
        train=TrainSpec(
            input_size=96,
            standardize=True,
            brightness=0.0,
            erasing_probability=0.0,
            crop_side=0.65,
            shift=0.075,
            iterations=1000,
            batch_size=64,
            learning_rate=1.5e-3,
            schedule="cosine",
            instance_weight=1.0,
            instance_images=32,
            checkpoint_every=200,
            evaluate_every=250,
        ),
    ),
    settings=Settings(
        catalog=CatalogSpec(labels="none", deliveries="folder"),
        report=ReportSpec(
            severities={"spalling": 4.0, "corrosion": 3.0, "crack": 3.0, "scratch": 1.0, "joint": 1.0, "sound": 0.0}
        ),
    ),
)


def run_demo(out: Path, deliveries: tuple[str, ...]) -> list[dict[str, Any]]:
    """Train on the labelled images, then publish a version for each delivery; a run that was stopped goes on.

    Args:
        out: the folder ``make_demo`` has filled; the store is ``out/store``.

    Returns:
        What ``recluster --json`` prints, for each delivery, and ``truth``: how it compares with what is really there.
    """
    store, images = Store(out / "store"), out / "images"
    spec = DEMO_ARCHIVE
    _finish(
        start_run(
            store,
            kind="train",
            archive=spec.archive,
            images=str(images / "labelled"),
            model=spec.model,
            settings=spec.training_settings,
            run_id="demo-training",
        )
    )
    summaries = []
    for delivery in deliveries:
        run = start_run(
            store,
            kind="recluster",
            archive=spec.archive,
            images=str(images / "archive"),
            model=spec.model,
            settings=spec.settings,
            delivery=delivery,
            run_id=f"demo-{delivery}",
        )
        _finish(run)
        summary = summarize(run)
        summaries.append(summary | {"truth": score_against_truth(out, spec.archive, summary["version"])})
    return summaries


def _finish(run: Run) -> None:
    for artifact in run_pipeline(run):
        logger.info("%s: sealed in %.1f s", artifact.stage, artifact.seconds)

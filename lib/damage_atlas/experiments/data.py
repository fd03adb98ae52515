"""Labelled images for an experiment: catalogued, split and decoded as for a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from damage_atlas.catalog.splits import assign_splits
from damage_atlas.errors import InputError
from damage_atlas.images import Limits
from damage_atlas.pipeline import run_stage
from damage_atlas.spec import Settings
from damage_atlas.store import Run, Store, start_run
from damage_atlas.train import labelled_images
from damage_atlas.train.data import LabelledImages, Pixels

_VALIDATION_SHARE = 0.2


def catalogued(images: str, work: Path, settings: Settings) -> Run:
    """A run in ``work`` whose catalog has the images."""
    store = Store(work / "store")
    run = start_run(store, kind="train", archive="experiment", images=images, model="none", settings=settings)
    run_stage(run, "catalog")
    return run


@contextmanager
def open_images(images: str, work: Path, settings: Settings) -> Iterator[tuple[LabelledImages, Pixels]]:
    """The labelled images in ``images``, and their pixels at ``train.input_size``; the catalog is kept in ``work``.

    Raises:
        InputError: nothing to learn from, or nothing held out to score on.
    """
    run = catalogued(images, work, settings)
    found = labelled_images(run)
    if not len(found.rows_of("test")):
        raise InputError(f"{images}: no image is held out, so that nothing can be scored. Raise catalog.test_share.")
    limits = Limits.of(settings.catalog)
    with Pixels(found, run.spec.images, settings.train.input_size, limits) as pixels:
        yield found, pixels


def with_validation(images: LabelledImages, seed: int) -> LabelledImages:
    """The training split alone, a fifth of it held out to choose settings on; the real held-out images are in no split.

    No group is on both sides.

    Raises:
        InputError: the groups leave nothing to hold out.
    """
    rows, groups = images.training_rows, images.groups or images.image_ids
    splits = [""] * len(images)
    dealt = assign_splits([groups[row] for row in rows], images.training_labels, _VALIDATION_SHARE, seed)
    if "test" not in dealt:
        raise InputError(
            f"of {len(rows)} training images in {len({groups[row] for row in rows})} group(s) nothing can be held out "
            "to choose settings on. Give more groups."
        )
    for row, split in zip(rows, dealt, strict=True):
        splits[row] = split
    return replace(images, splits=splits)

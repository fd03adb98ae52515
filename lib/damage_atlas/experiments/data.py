"""Labelled images for an experiment: catalogued, split and decoded as for a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from damage_atlas.errors import InputError
from damage_atlas.images import Limits
from damage_atlas.pipeline import run_stage
from damage_atlas.spec import Settings
from damage_atlas.store import Store, start_run
from damage_atlas.train import labelled_images
from damage_atlas.train.data import LabelledImages, Pixels


@contextmanager
def open_images(images: str, work: Path, settings: Settings) -> Iterator[tuple[LabelledImages, Pixels]]:
    """The labelled images in ``images``, and their pixels at ``train.input_size``; the catalog is kept in ``work``.

    Raises:
        InputError: nothing to learn from, or nothing held out to score on.
    """
    store = Store(work / "store")
    run = start_run(store, kind="train", archive="experiment", images=images, model="none", settings=settings)
    run_stage(run, "catalog")
    found = labelled_images(run)
    if not len(found.rows_of("test")):
        raise InputError(f"{images}: no image is held out, so that nothing can be scored. Raise catalog.test_share.")
    limits = Limits.of(settings.catalog)
    with Pixels(found, run.spec.images, settings.train.input_size, limits) as pixels:
        yield found, pixels

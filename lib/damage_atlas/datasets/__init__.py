"""Data sets as their owners hand them out: each becomes a manifest, and the pictures stay where they are.

severstal.py   steel surfaces, masks as run lengths
sdnet2018.py   concrete decks, pavements and walls, in folders
sewer_ml.py    sewer frames, a table of codes
coco.py        whatever is annotated in COCO's format
manifest.py    the rows, and the file that they are written to

docs/datasets/ says of each where it is to be had, and what to type.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from damage_atlas.datasets import coco, sdnet2018, severstal, sewer_ml
from damage_atlas.datasets.manifest import LeftOut, Prepared, Row, write_manifest
from damage_atlas.errors import InputError

__all__ = ["DATASETS", "Prepared", "prepare"]


@dataclass(frozen=True)
class Dataset:
    """How a data set is read.

    Attributes:
        read: rows of a folder, of the paper's classes alone where asked.
        settings: that a run on it wants.
        paper_each: at most so many images of each of the paper's classes; None where the paper does not say.
    """

    read: Callable[[Path, bool, LeftOut], Iterator[Row]]
    settings: tuple[str, ...] = ()
    paper_each: int | None = None


DATASETS: dict[str, Dataset] = {
    "severstal": Dataset(severstal.read),
    "sdnet2018": Dataset(sdnet2018.read, paper_each=4000),
    "sewer-ml": Dataset(sewer_ml.read, settings=("train.multi_label=true",)),
    "coco": Dataset(coco.read),
}


def prepare(name: str, source: Path, out: Path, paper: bool = False, each: int | None = None) -> Prepared:
    """Write the manifest of a data set.

    Args:
        name: one of ``DATASETS``.
        source: the folder it was unpacked to.
        out: the manifest, a CSV file; one that is there is replaced.
        paper: the classes of the paper's experiments alone.
        each: at most so many images of each class: a draw that anybody repeats. None: all, or the paper's number.

    Raises:
        InputError: no such data set, or not in this folder.
    """
    if name not in DATASETS:
        raise InputError(f"data set {name!r} is not known; {', '.join(DATASETS)} are.")
    if not source.is_dir():
        raise InputError(f"{source} is no folder. Unpack {name} there first; docs/datasets/{name}.md says how.")
    dataset, left_out = DATASETS[name], LeftOut()
    try:
        rows = list(dataset.read(source, paper, left_out))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{source}: a table of {name} cannot be read ({error}). Unpack it again.") from error
    limit = each if each is not None else dataset.paper_each if paper else None
    settings = dataset.settings if not paper else ()
    return write_manifest(rows, source, out, limit, left_out, settings)

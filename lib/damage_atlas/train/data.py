"""The labelled images a network learns from: rows of the catalog, and their preprocessed pixels, decoded once."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from damage_atlas.errors import InputError, StoreError
from damage_atlas.images import ImageError, Limits, PhotoReader, Source, preprocess

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledImages:
    """Unique labelled images, sorted by image_id, with what is needed to read them.

    ``labels`` joins several labels of an image with ``+``; such a mix is a class of its own here. ``groups`` are those
    of the split; where none are given each image stands for itself.
    """

    image_ids: list[str]
    sources: list[Source]
    labels: list[str]
    splits: list[str]
    groups: list[str] = field(default_factory=list)

    @classmethod
    def from_observations(cls, observations: pa.Table) -> LabelledImages:
        """Rows that are ok, labelled and in a split; equal pixels count once.

        Raises:
            InputError: nothing to learn from: no labels, or fewer than two classes in the training split.
        """
        rows = [r for r in observations.to_pylist() if r["status"] == "ok" and r["labels"] and r["split"]]
        unique = {row["image_id"]: row for row in sorted(rows, key=lambda r: (r["image_id"], r["file"]), reverse=True)}
        ordered = [unique[image_id] for image_id in sorted(unique)]
        images = cls(
            [r["image_id"] for r in ordered],
            [Source.of_row(r) for r in ordered],
            ["+".join(r["labels"]) for r in ordered],
            [r["split"] for r in ordered],
            [r["group"] for r in ordered],
        )
        classes = images.classes
        if len(classes) < 2:
            held_out = sum(split == "test" for split in images.splits)
            found = ", ".join(classes) or (
                f"no labels, but {held_out} labelled images held out: lower catalog.test_share"
                if held_out
                else "no labels"
            )
            raise InputError(
                f"training needs at least two classes, found {found}. Put the images of each class in a folder of its "
                "own (bytes that stand under two classes count for neither); for a model that exists already use "
                "`damage-atlas recluster`."
            )
        counts = Counter(images.training_labels)
        if max(counts.values()) < 2:
            raise InputError(
                f"every class has a single training image ({dict(counts)}); a pair needs two of one class."
            )
        return images

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def training_rows(self) -> Ints:
        """Rows of the training split."""
        return np.flatnonzero(np.array(self.splits) == "train")

    @property
    def training_labels(self) -> list[str]:
        """Labels of the training split."""
        return [self.labels[i] for i in self.training_rows]

    @property
    def classes(self) -> list[str]:
        """Classes of the training split, sorted."""
        return sorted(set(self.training_labels))

    @property
    def training_codes(self) -> Ints:
        """Place in ``classes`` of each row of the training split."""
        return np.searchsorted(self.classes, self.training_labels)

    @property
    def label_sets(self) -> NDArray[np.bool_]:
        """Which labels each of ``classes`` carries: classes x labels."""
        labels = sorted({label for name in self.classes for label in name.split("+")})
        return np.array([[label in name.split("+") for label in labels] for name in self.classes])

    def rows_of(self, split: str) -> Ints:
        """Rows of one split."""
        return np.flatnonzero(np.array(self.splits) == split)

    def in_a_split(self) -> LabelledImages:
        """Those that are in any split, without the others."""
        return self.take([row for row, split in enumerate(self.splits) if split])

    def take(self, rows: list[int] | Ints) -> LabelledImages:
        """These rows alone, in this order."""
        columns = (self.image_ids, self.sources, self.labels, self.splits, self.groups)
        return LabelledImages(*([column[row] for row in rows] if column else [] for column in columns))  # type: ignore[arg-type]


class Pixels:
    """Preprocessed pixels of the images, decoded when first asked for and kept in a temporary file.

    Use as a context manager: the file goes when it is left.
    """

    def __init__(self, images: LabelledImages, images_root: str, input_size: int, limits: Limits) -> None:
        self.images, self.images_root, self.input_size, self.limits = images, images_root, input_size, limits
        self._folder = tempfile.TemporaryDirectory(prefix="damage-atlas-pixels-")
        shape = (max(len(images), 1), input_size, input_size, 3)
        path = Path(self._folder.name) / "pixels.u8"
        try:
            with path.open("wb") as file:
                # All of it now: a sparse file on a full disk kills the process at the first page that has no room.
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        except OSError as error:
            self._folder.cleanup()
            raise StoreError(
                f"{self._folder.name} has no room for {math.prod(shape):,} bytes of pixels ({error.strerror}). Free "
                "some, or let TMPDIR name another folder."
            ) from error
        self._pixels = np.memmap(path, np.uint8, "r+", shape=shape)
        self._decoded = np.zeros(len(images), bool)
        self._pool = ThreadPoolExecutor(max_workers=2)

    def __enter__(self) -> Pixels:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        del self._pixels
        self._folder.cleanup()

    def __getitem__(self, rows: Ints) -> NDArray[np.uint8]:
        """Pixels of ``rows``: B x size x size x 3.

        Raises:
            InputError: an image can no longer be read as the catalog found it.
        """
        self.decode(rows)
        return np.asarray(self._pixels[rows])

    def decode(self, rows: Ints) -> None:
        """Have the pixels of ``rows`` in the file; errors as for reading them."""
        missing = np.unique(rows[~self._decoded[rows]])
        # So that a photo is decoded once for all its tiles, and a tar file read from its beginning to its end.
        missing = np.array(sorted(missing, key=lambda row: self.images.sources[row].place), np.int64)
        # A reader each: tiles of one photo share a decode, and threads must not share a reader.
        chunks = [chunk for chunk in np.array_split(missing, 2) if len(chunk)]
        list(self._pool.map(self._decode, chunks))

    def _decode(self, rows: Ints) -> None:
        with PhotoReader(self.images_root, self.limits) as reader:
            sources = [self.images.sources[row] for row in rows]
            for row, source, picture in zip(rows, sources, reader.read_each(sources), strict=True):
                if isinstance(picture, ImageError):
                    raise InputError(
                        f"{source.file} cannot be read as the catalog found it ({picture.reason}). Start a new run."
                    ) from picture
                self._pixels[row] = preprocess(picture, self.input_size)
                self._decoded[row] = True

"""Hover pictures: read, shrunk, and packed into few sheets, because thousands of small files in a page are slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from damage_atlas.images import ImageError, Limits, PhotoReader, Source, encode_jpeg, preprocess
from damage_atlas.parts import MapParts
from damage_atlas.progress import Progress
from damage_atlas.report.facts import Point

SHEET_COLUMNS = 20
_PER_SHEET = SHEET_COLUMNS * SHEET_COLUMNS
_ROWS_PER_PART = 100
_QUALITY = 80


@dataclass(frozen=True)
class Sheets:
    """Thumbnails in the order they were asked for, row by row, ``SHEET_COLUMNS`` a row.

    Attributes:
        jpegs: sheets of 400 thumbnails; the last one is shorter.
        missing: positions whose picture could not be read any more; their place is grey.
    """

    size: int  # pixels, each side of a thumbnail
    jpegs: tuple[bytes, ...]
    missing: tuple[int, ...]


@dataclass(frozen=True)
class _Part:
    images_root: str
    limits: Limits
    size: int
    wanted: tuple[tuple[int, Source], ...]  # position, where its picture comes from


def make_sheets(points: Sequence[Point], images_root: str, limits: Limits, size: int, map_parts: MapParts) -> Sheets:
    """Thumbnails of ``points``, read through ``map_parts``; a picture that cannot be read leaves a gap."""
    thumbnails, missing = _read(points, images_root, limits, size, map_parts, "hover pictures")
    sheets = tuple(_sheet(thumbnails[start : start + _PER_SHEET]) for start in range(0, len(points), _PER_SHEET))
    return Sheets(size, sheets, tuple(missing))


def make_pictures(
    points: Sequence[Point], images_root: str, limits: Limits, size: int, map_parts: MapParts
) -> dict[str, bytes]:
    """observation_id -> JPEG of ``size`` pixels a side; what cannot be read any more is left out."""
    pixels, missing = _read(points, images_root, limits, size, map_parts, "pictures to look at")
    gone = set(missing)
    return {p.observation_id: encode_jpeg(pixels[i], _QUALITY) for i, p in enumerate(points) if i not in gone}


def _read(
    points: Sequence[Point], images_root: str, limits: Limits, size: int, map_parts: MapParts, what: str
) -> tuple[NDArray[np.uint8], list[int]]:
    """Pictures of all points, N x size x size x 3, and the positions of those that cannot be read."""
    # Tiles of one photo side by side: the photo is decoded once.
    wanted = sorted(((i, p.source) for i, p in enumerate(points)), key=lambda item: (item[1].place, item[0]))
    parts = [
        _Part(images_root, limits, size, tuple(wanted[start : start + _ROWS_PER_PART]))
        for start in range(0, len(wanted), _ROWS_PER_PART)
    ]
    thumbnails = np.full((len(points), size, size, 3), 128, dtype=np.uint8)
    missing: list[int] = []
    with Progress("report", what, len(points)) as progress:
        for part, (pixels_NSSC, readable_N) in zip(parts, map_parts(_read_part, parts), strict=True):
            positions = np.array([item[0] for item in part.wanted])
            thumbnails[positions[readable_N]] = pixels_NSSC[readable_N]
            missing += positions[~readable_N].tolist()
            progress.add(len(positions), int((~readable_N).sum()))
    return thumbnails, sorted(missing)


def _read_part(part: _Part) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    pixels_NSSC = np.zeros((len(part.wanted), part.size, part.size, 3), dtype=np.uint8)
    readable_N = np.ones(len(part.wanted), dtype=bool)
    with PhotoReader(part.images_root, part.limits) as reader:
        for i, picture in enumerate(reader.read_each([source for _, source in part.wanted])):
            if isinstance(picture, ImageError):
                readable_N[i] = False
            else:
                pixels_NSSC[i] = preprocess(picture, part.size)
    return pixels_NSSC, readable_N


def _sheet(thumbnails_NSSC: NDArray[np.uint8]) -> bytes:
    n, size = thumbnails_NSSC.shape[:2]
    columns = min(n, SHEET_COLUMNS)
    rows = -(-n // columns)
    grid = np.full((rows * columns, size, size, 3), 128, dtype=np.uint8)
    grid[:n] = thumbnails_NSSC
    sheet = grid.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)
    return encode_jpeg(sheet, _QUALITY)

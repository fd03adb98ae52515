"""Pictures with boxes in COCO's format, as most annotation tools write it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from damage_atlas.datasets.manifest import NORMAL, Box, LeftOut, Row
from damage_atlas.errors import InputError

_AROUND = 1.2  # the square that is seen, in longer sides of the box
_LEAST_SIDE = 32  # pixels of the square
_SMALLEST = 4  # pixels: a smaller box is a slip of the hand
_HELD_OUT = ("val", "test")


def read(source: Path, paper: bool, left_out: LeftOut) -> Iterator[Row]:
    """A row for each box, seen as a square with a little around it; a picture without boxes is ``normal``.

    Annotations lie in ``annotations/``, or anywhere below the folder, beside their pictures. One whose name, or whose
    folder's, says ``val`` or ``test`` is held out where others say ``train``.

    Args:
        paper: changes nothing: the paper has no such set.

    Raises:
        InputError: no annotations, or not such a file.
    """
    del paper
    documents = {file: _read(file) for file in sorted(source.rglob("*.json"))}
    found = {file: document for file, document in documents.items() if document is not None}
    if not found:
        raise InputError(f"{source}: no file in COCO's format (JSON with images, annotations and categories).")
    splits = {file: _split_of(file.relative_to(source)) for file in found}
    is_split = set(splits.values()) == {"train", "test"}
    for file, document in found.items():
        yield from _rows(source, file, document, splits[file] if is_split else None, left_out)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON ({error}). Mend it, or move it away.") from error
    is_coco = isinstance(document, dict) and {"images", "annotations", "categories"} <= document.keys()
    return document if is_coco else None


def _split_of(path: Path) -> str | None:
    words = [part.lower() for part in path.parts]
    if any(name in word for word in words for name in _HELD_OUT):
        return "test"
    return "train" if any("train" in word for word in words) else None


def _rows(source: Path, file: Path, document: dict[str, Any], split: str | None, left_out: LeftOut) -> Iterator[Row]:
    try:
        # A + would join several labels.
        names = {c["id"]: " and ".join(map(str.strip, str(c["name"]).split("+"))) for c in document["categories"]}
        of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in document["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        for image in document["images"]:
            place = _place(source, file, str(image["file_name"]))
            if place is None:
                left_out["pictures that are not there"] += 1
                continue
            annotations = of_image.get(image["id"], [])
            if not annotations:
                yield Row(place, NORMAL, place, split=split)
            seen: set[Box] = set()
            for annotation in annotations:
                box = _square(annotation["bbox"], int(image["width"]), int(image["height"]))
                if annotation.get("iscrowd") or box is None:
                    left_out["boxes of crowds, outside, or a few pixels small"] += 1
                elif box in seen:
                    left_out["boxes that are there twice"] += 1
                else:
                    seen.add(box)
                    yield Row(place, names[annotation["category_id"]], place, box, split)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is not in COCO's format ({type(error).__name__}: {error}).") from error


def _place(source: Path, file: Path, name: str) -> str | None:
    """The picture, relative to ``source``: beside its annotations, or in one of the usual folders."""
    kind = file.stem.partition("_")[2]  # instances_train2017.json
    folders = (file.parent, source / kind, source / "images" / kind, source / "images", source)
    for folder in folders:
        picture = (folder / name).resolve()
        if picture.is_file() and picture.is_relative_to(source.resolve()):
            return picture.relative_to(source.resolve()).as_posix()
    return None


def _square(bbox: list[float], width: int, height: int) -> Box | None:
    """A square around the box, moved into the picture where it would reach over the edge."""
    x, y, box_width, box_height = (float(value) for value in bbox)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + box_width, width), min(y + box_height, height)
    if min(right - left, bottom - top) < _SMALLEST:
        return None
    side = max(_AROUND * max(right - left, bottom - top), _LEAST_SIDE)
    wide, high = min(round(side), width), min(round(side), height)
    at_x = min(max(round((left + right - wide) / 2), 0), width - wide)
    at_y = min(max(round((top + bottom - high) / 2), 0), height - high)
    return at_x, at_y, wide, high

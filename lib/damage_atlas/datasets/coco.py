"""Pictures with boxes in COCO's format, as most annotation tools write it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from damage_atlas.datasets.manifest import NORMAL, Box, LeftOut, Row
from damage_atlas.errors import InputError

_AROUND = 1.2  # the square that is seen, in longer sides of the box
_LEAST_SIDE = 32  # pixels of the square
_SMALLEST = 4  # pixels: a smaller box is a slip of the hand
_HELD_OUT, _LEARNT = {"val", "valid", "validation", "test"}, {"train", "training"}
_LARGEST_FILE = 2 * 2**30  # bytes of annotations: parsed they take ten times that


def read(source: Path, paper: bool, left_out: LeftOut) -> Iterator[Row]:
    """A row for each box, seen as a square with a little around it; a picture without boxes is ``normal``.

    Annotations lie in ``annotations/``, or anywhere below the folder, beside their pictures. Where some say ``train``
    by their name or folder and others ``val`` or ``test``, that split is kept. A box with several labels has them all.

    Args:
        paper: changes nothing: the paper has no such set.

    Raises:
        InputError: no annotations, or not such a file.
    """
    del paper
    found: dict[str, dict[Box | None, set[str]]] = {}  # picture -> box, or the whole of it -> labels
    sides: dict[str, set[str | None]] = defaultdict(set)
    read = 0
    for file in sorted(source.rglob("*.json")):
        document = _document(file, source)
        if document is None:
            continue
        read += 1
        split = _split_of(file.relative_to(source))
        for place, box, label in _named(source, file, document, left_out):
            found.setdefault(place, {}).setdefault(box, set()).add(label)
            sides[place].add(split)
    if not read:
        raise InputError(f"{source}: no file in COCO's format (JSON with images, annotations and categories).")
    is_split = {"train", "test"} <= {side for both in sides.values() for side in both}
    for place, boxes in found.items():
        if len(sides[place]) > 1 and is_split:
            left_out["pictures on both sides of the split"] += 1
            continue
        side = next(iter(sides[place])) if is_split else None
        for box, labels in boxes.items():
            if box is not None or len(boxes) == 1:  # a picture is normal where no file has a box in it
                yield Row(place, "+".join(sorted(labels)), place, box, side)


def _document(file: Path, source: Path) -> dict[str, Any] | None:
    """The file's content; None where it is no annotation of boxes, or a link that leads out of the folder."""
    if not file.resolve().is_relative_to(source.resolve()):
        return None
    if file.stat().st_size > _LARGEST_FILE:
        raise InputError(f"{file} has {file.stat().st_size:,} bytes, the limit is {_LARGEST_FILE:,}. Move it away.")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON ({error}). Mend it, or move it away.") from error
    if not isinstance(document, dict) or not {"images", "annotations", "categories"} <= document.keys():
        return None
    annotations = document["annotations"]
    of_boxes = not annotations or any(isinstance(each, dict) and "bbox" in each for each in annotations)
    return document if of_boxes else None  # of segments alone (panoptic), or captions


def _split_of(path: Path) -> str | None:
    """By the word nearest to the file: its name, then its folder."""
    for part in reversed(path.parts):
        words = set(re.split(r"[^a-z]+", part.lower()))
        if words & _HELD_OUT:
            return "test"
        if words & _LEARNT:
            return "train"
    return None


def _named(
    source: Path, file: Path, document: dict[str, Any], left_out: LeftOut
) -> Iterator[tuple[str, Box | None, str]]:
    """Picture, box and label of each annotation; a picture without any, as a whole and normal."""
    try:
        # A + would join several labels.
        names = {c["id"]: " and ".join(map(str.strip, str(c["name"]).split("+"))) for c in document["categories"]}
        for name in names.values():
            name.encode()  # half a surrogate pair has no place in a table
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
                yield place, None, NORMAL
            for annotation in annotations:
                box = _square(annotation["bbox"], int(image["width"]), int(image["height"]))
                if annotation.get("iscrowd") or box is None:
                    left_out["boxes of crowds, outside, or a few pixels small"] += 1
                else:
                    yield place, box, names[annotation["category_id"]]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(f"{file} is not in COCO's format ({type(error).__name__}: {error}).") from error


def _place(source: Path, file: Path, name: str) -> str | None:
    """The picture, relative to ``source``: beside its annotations, or in one of the usual folders."""
    kind = file.stem.partition("_")[2]  # instances_train2017.json
    folders = (file.parent, source / kind, source / "images" / kind, source / "images", source)
    for folder in folders:
        with suppress(OSError, ValueError):  # no name that a file can have
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

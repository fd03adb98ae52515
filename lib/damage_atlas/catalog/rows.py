"""From facts about files to observations. Pure, by columns: names, tiles, duplicates, contradictions."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.catalog.annotations import ANNOTATION_COLUMNS
from damage_atlas.catalog.manifest import Manifest
from damage_atlas.catalog.tiling import plan_tiles
from damage_atlas.contracts import OBSERVATIONS
from damage_atlas.errors import InputError
from damage_atlas.images import Tile
from damage_atlas.spec import CatalogSpec

_TAKEN_OVER = (
    *("size_bytes", "width", "height", "format", "captured_at", "latitude", "longitude", "element", "position_m"),
    *("clock", "frame_time_s", "reason", "file", "sha256", "detail", "container", "byte_start", "frame"),
)


@dataclass(frozen=True)
class Place:
    """What a file's folders mean."""

    delivery: str | None
    labels: list[str]
    asset_id: str | None


def place_of(file: str, settings: CatalogSpec, container: str | None = None) -> Place:
    """Read ``[delivery/][label/][asset/…/]name``, as far as the settings say that there are such folders.

    A tar file is no folder: its members lie where it lies.
    """
    if container is not None:
        file = container.rpartition("/")[0] + file[len(container) :]
    return _place_of_folder(file.rpartition("/")[0].strip("/"), settings.labels, settings.deliveries)


@lru_cache(maxsize=4096)
def _place_of_folder(path: str, labelled: str, delivered: str) -> Place:
    folders = path.split("/") if path else []
    delivery = folders.pop(0) if delivered == "folder" and folders else None
    labels: list[str] = []
    if labelled == "folder" and folders:
        name = folders.pop(0)
        labels = sorted({label.strip() for label in name.split("+")} - {""}) or [name]
    return Place(delivery, labels, "/".join(folders) or None)


def make_observations(
    files: pa.Table,
    groups: dict[str, str] | None,
    manifest: Manifest | None,
    settings: CatalogSpec,
    uri: Callable[[str, str | None, float | None], str],
) -> pa.Table:
    """One row per whole photo, per tile of a large one, per frame, and per file that cannot be used, in order.

    Args:
        files: columns as in ``contracts.FILES``, in the order that the observations shall have.
        groups: file -> group from a side-car; None when there is no side-car.
        manifest: file -> what it says; goes before what is said beside the picture, and both before the folders.
        uri: where a file lies, of (file, container, seconds).

    Raises:
        InputError: a box of the manifest lies outside its picture.
    """
    boxes: list[Tile | None] = [None] * files.num_rows
    splits: list[str | None] = [None] * files.num_rows
    if manifest is not None:
        files, boxes, splits = _annotate(files, manifest)
    rows: list[int] = []  # of ``files``, for each observation
    made: dict[str, list[Any]] = defaultdict(list)
    cut: set[tuple[str, int | None, Tile]] = set()  # boxes of the manifest
    columns = ("file", "container", "frame", "frame_time_s", "sha256", "width", "height", "reason")
    said = ("labels", "group", "asset_id", "inspection_id")
    for i, (file, container, frame, time_s, sha256, width, height, reason, *beside) in enumerate(
        zip(*(files[name].to_pylist() for name in (*columns, *said)), strict=True)
    ):
        place = place_of(file, settings, container)
        labels, group, asset_id, inspection_id = beside
        asset_id = asset_id or place.asset_id
        tiles: tuple[Tile | None, ...] = (None,)
        if reason is None and (box := boxes[i]) is not None:
            tiles = (_inside(box, file, width, height, settings.min_side),)
            if (file, frame, tiles[0]) in cut:
                raise InputError(f"the manifest has two boxes of {file!r} that are one inside the picture. Keep one.")
            cut.add((file, frame, tiles[0]))
        elif reason is None and max(width, height) > settings.tile_above:
            tiles = plan_tiles(width, height, settings.tile_size, settings.tile_overlap)
        named = None if groups is None else groups.get(file)
        # With a side-car, a file that it does not name stands for itself: it may want to split the asset.
        stands_for = named or group or (None if groups is not None else asset_id) or file
        for tile in tiles:
            rows.append(i)
            made["observation_id"].append(observation_id(file, tile, frame))
            made["image_id"].append(None if reason is not None else image_id(sha256, tile, frame))
            for name, value in zip(
                ("x", "y", "width", "height"),
                (tile.x, tile.y, tile.width, tile.height) if tile else (None,) * 4,
                strict=True,
            ):
                made[f"tile_{name}"].append(value)
            made["uri"].append(uri(file, container, time_s))
            made["labels"].append(place.labels if labels is None else labels)
            made["group"].append(stands_for)
            made["asset_id"].append(asset_id)
            made["inspection_id"].append(
                inspection_id or (f"{place.delivery}/{asset_id}" if place.delivery and asset_id else None)
            )
            made["status"].append("ok" if reason is None else "quarantined")
            made["delivery"].append(place.delivery)
            made["split"].append(splits[i])
    taken = files.select(_TAKEN_OVER).take(pa.array(rows, pa.int64()))
    arrays = [
        taken[field.name]
        if field.name in _TAKEN_OVER
        else pa.array(made.get(field.name, [None] * len(rows)), field.type)
        for field in OBSERVATIONS
    ]
    return pa.Table.from_arrays([_one_chunk(array) for array in arrays], schema=OBSERVATIONS)


def _annotate(files: pa.Table, manifest: Manifest) -> tuple[pa.Table, list[Tile | None], list[str | None]]:
    """The files, once for each of their rows in the manifest, with what it says; and of each row the box and split."""
    said_of = [
        manifest.get(file, [{}]) if reason is None else manifest.get(file, [{}])[:1]
        for file, reason in zip(files["file"].to_pylist(), files["reason"].to_pylist(), strict=True)
    ]
    files = files.take(pa.array([i for i, said in enumerate(said_of) for _ in said], pa.int64()))
    rows = [row for said in said_of for row in said]
    for name in ANNOTATION_COLUMNS:
        if any(name in row for row in rows):
            values = [row.get(name, old) for row, old in zip(rows, files[name].to_pylist(), strict=True)]
            files = files.set_column(
                files.column_names.index(name), files.field(name), pa.array(values, files.field(name).type)
            )
    return files, [row.get("tile") for row in rows], [row.get("split") for row in rows]


def _inside(box: Tile, file: str, width: int, height: int, min_side: int) -> Tile:
    """What of a box lies in the picture."""
    tile = Tile(box.x, box.y, min(box.width, width - box.x), min(box.height, height - box.y))
    if min(tile.width, tile.height) < min_side:
        raise InputError(
            f"the manifest's box {box.x}, {box.y}, {box.width} x {box.height} of {file!r} lies outside the picture, "
            f"which has {width} x {height} pixels, or is smaller than catalog.min_side ({min_side}). Mend or leave it "
            "out, then run again."
        )
    return tile


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def observation_id(file: str, tile: Tile | None, frame: int | None = None) -> str:
    """20 hexadecimal digits that name a place in the archive: the same in every run."""
    return hashlib.sha256(_with_parts(file, tile, frame, "\0").encode()).hexdigest()[:20]


def image_id(sha256: str, tile: Tile | None, frame: int | None = None) -> str:
    """Names pixels: the digest of the file's bytes, with the frame of a video and the box of a tile."""
    return _with_parts(sha256, tile, frame, "-")


def _with_parts(name: str, tile: Tile | None, frame: int | None, separator: str) -> str:
    if frame is not None:
        name = f"{name}{separator}f{frame}"
    return name if tile is None else f"{name}{separator}{tile.x}-{tile.y}-{tile.width}-{tile.height}"


def mark_duplicates(observations: pa.Table) -> pa.Table:
    """Set status ``duplicate`` where an earlier row shows the same pixels of the same asset at the same time.

    Rows that give other labels to the same pixels are not repetitions but a contradiction, and stay.
    """
    columns = [observations[name].to_pylist() for name in ("status", "detail")]
    status, detail = columns
    first: dict[tuple[Any, ...], str] = {}
    keys = ("image_id", "asset_id", "captured_at", "labels", "file")
    for i, (image, asset, moment, labels, file) in enumerate(
        zip(*(observations[k].to_pylist() for k in keys), strict=True)
    ):
        if status[i] == "ok":
            earlier = first.setdefault((image, asset, moment, *labels), file)
            if earlier != file:
                status[i], detail[i] = "duplicate", f"the same bytes as {earlier}"
    return set_columns(observations, status=status, detail=detail)


def contradictions(observations: pa.Table) -> dict[str, list[str]]:
    """Files by image_id where equal pixels carry different labels."""
    labels: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    files: dict[str, set[str]] = defaultdict(set)
    labelled = observations.filter(
        pc.and_(
            pc.not_equal(observations["status"], "quarantined"),
            pc.greater(pc.list_value_length(observations["labels"]), 0),
        )
    )
    # A video's frames may differ in what they show.
    whole = labelled.filter(pc.is_null(labelled["frame"]))
    for image, said, file in zip(*(whole[name].to_pylist() for name in ("image_id", "labels", "file")), strict=True):
        labels[image].add(tuple(said))
        files[image].add(file)
    return {image: sorted(files[image]) for image, sets in labels.items() if len(sets) > 1}


def set_columns(table: pa.Table, **columns: list[Any]) -> pa.Table:
    """The table with other values in some columns."""
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    return table

"""From checked files to observations. Pure: names, tiles, duplicates, contradictions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from damage_atlas.catalog.check import CheckedFile
from damage_atlas.catalog.tiling import plan_tiles
from damage_atlas.images import Tile
from damage_atlas.spec import CatalogSpec

Row = dict[str, Any]  # column of contracts.OBSERVATIONS -> value


@dataclass(frozen=True)
class Place:
    """What a file's folders mean."""

    delivery: str | None
    labels: list[str]
    asset_id: str | None

    @property
    def inspection_id(self) -> str | None:
        """One asset in one delivery."""
        return f"{self.delivery}/{self.asset_id}" if self.delivery and self.asset_id else None


def place_of(file: str, settings: CatalogSpec) -> Place:
    """Read ``[delivery/][label/][asset/…/]name``, as far as the settings say that there are such folders."""
    folders = file.split("/")[:-1]
    delivery = folders.pop(0) if settings.deliveries == "folder" and folders else None
    labels: list[str] = []
    if settings.labels == "folder" and folders:
        name = folders.pop(0)
        labels = sorted({label.strip() for label in name.split("+")} - {""}) or [name]
    return Place(delivery, labels, "/".join(folders) or None)


def make_rows(
    files: Iterable[CheckedFile],
    groups: dict[str, str] | None,
    settings: CatalogSpec,
    uri: Callable[[str], str],
) -> list[Row]:
    """One row per whole photo, per tile of a large one, and per file that cannot be used, in order.

    Args:
        groups: file -> group from a side-car; None when there is no side-car.
        uri: where a file lies.
    """
    rows: list[Row] = []
    for checked in files:
        place = place_of(checked.file, settings)
        # With a side-car, a file that it does not name stands for itself: it may want to split the asset.
        group = (place.asset_id if groups is None else groups.get(checked.file)) or checked.file
        common: Row = {
            "uri": uri(checked.file),
            "size_bytes": checked.size_bytes,
            "labels": place.labels,
            "group": group,
            "asset_id": place.asset_id,
            "inspection_id": place.inspection_id,
            "status": "ok" if checked.picture else "quarantined",
            "reason": checked.reason,
            "file": checked.file,
            "delivery": place.delivery,
            "sha256": checked.sha256,
            "detail": checked.detail,
        }
        tiles: Sequence[Tile | None] = (None,)
        if picture := checked.picture:
            common |= {
                "width": picture.width,
                "height": picture.height,
                "format": picture.format,
                "captured_at": picture.captured_at,
                "latitude": picture.latitude,
                "longitude": picture.longitude,
            }
            if max(picture.width, picture.height) > settings.tile_above:
                tiles = plan_tiles(picture.width, picture.height, settings.tile_size, settings.tile_overlap)
        for tile in tiles:
            row = common | {
                "observation_id": observation_id(checked.file, tile),
                "image_id": image_id(checked.sha256, tile) if checked.picture and checked.sha256 else None,
            }
            if tile is not None:
                row |= {
                    "tile_x": tile.x,
                    "tile_y": tile.y,
                    "tile_width": tile.width,
                    "tile_height": tile.height,
                }
            rows.append(row)
    return rows


def observation_id(file: str, tile: Tile | None) -> str:
    """20 hexadecimal digits that name a place in the archive: the same in every run."""
    return hashlib.sha256(_with_tile(file, tile, "\0").encode()).hexdigest()[:20]


def image_id(sha256: str, tile: Tile | None) -> str:
    """Names pixels: the digest of the file's bytes, with the box of a tile."""
    return _with_tile(sha256, tile, "-")


def _with_tile(name: str, tile: Tile | None, separator: str) -> str:
    return name if tile is None else f"{name}{separator}{tile.x}-{tile.y}-{tile.width}-{tile.height}"


def mark_duplicates(rows: list[Row]) -> None:
    """Set status ``duplicate`` where an earlier row shows the same pixels of the same asset at the same time.

    Rows that give other labels to the same pixels are not repetitions but a contradiction, and stay.
    """
    first: dict[tuple[Any, ...], str] = {}
    for row in rows:
        if row["status"] == "ok":
            key = (row["image_id"], row["asset_id"], row["captured_at"], *row["labels"])
            earlier = first.setdefault(key, row["file"])
            if earlier != row["file"]:
                row["status"] = "duplicate"
                row["detail"] = f"the same bytes as {earlier}"


def contradictions(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Files by SHA-256 whose equal bytes carry different labels."""
    labels: dict[str, set[tuple[str, ...]]] = {}
    files: dict[str, set[str]] = {}
    for row in rows:
        if row["status"] != "quarantined" and row["labels"]:
            labels.setdefault(row["sha256"], set()).add(tuple(row["labels"]))
            files.setdefault(row["sha256"], set()).add(row["file"])
    return {digest: sorted(files[digest]) for digest, sets in labels.items() if len(sets) > 1}

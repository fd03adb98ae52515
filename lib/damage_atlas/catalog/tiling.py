"""Where a large photo is cut into tiles. Pure: boxes from sizes."""

from __future__ import annotations

from damage_atlas.images import Tile


def plan_tiles(width: int, height: int, size: int, overlap: int) -> tuple[Tile, ...]:
    """Tiles that cover a photo, row by row, all of one size and all inside it.

    Args:
        width, height: of the upright photo, pixels.
        size: side of a tile; a photo that is narrower gives tiles as narrow as itself.
        overlap: pixels that neighbours share; the last tile lies flush with the edge and may share more.
    """
    tile_width, tile_height = min(size, width), min(size, height)
    return tuple(
        Tile(x, y, tile_width, tile_height)
        for y in _starts(height, tile_height, overlap)
        for x in _starts(width, tile_width, overlap)
    )


def _starts(length: int, size: int, overlap: int) -> list[int]:
    last = length - size
    return [*range(0, last, max(size - overlap, 1)), last]

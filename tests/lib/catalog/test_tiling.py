from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from damage_atlas.catalog.tiling import plan_tiles
from damage_atlas.images import Tile


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.data())
def test_tiles_cover_the_photo_and_nothing_else(width: int, height: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    tiles = plan_tiles(width, height, size, overlap)
    seen = np.zeros((height, width), bool)
    for tile in tiles:
        assert tile.x >= 0
        assert tile.y >= 0
        assert tile.x + tile.width <= width
        assert tile.y + tile.height <= height
        assert (tile.width, tile.height) == (min(size, width), min(size, height))
        seen[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] = True
    assert seen.all()
    assert len(set(tiles)) == len(tiles)
    assert list(tiles) == sorted(tiles, key=lambda tile: (tile.y, tile.x))


@settings(deadline=None)
@given(st.integers(257, 2000), st.integers(0, 128))
def test_neighbours_share_at_least_the_overlap(width: int, overlap: int) -> None:
    tiles = plan_tiles(width, 256, 256, overlap)
    gaps = [right.x - left.x for left, right in pairwise(tiles)]
    assert all(0 < gap <= 256 - overlap for gap in gaps)


def test_a_drone_photo() -> None:
    tiles = plan_tiles(5472, 3648, 256, 32)
    assert len(tiles) == 25 * 17
    assert tiles[0] == Tile(0, 0, 256, 256)
    assert tiles[-1] == Tile(5472 - 256, 3648 - 256, 256, 256)

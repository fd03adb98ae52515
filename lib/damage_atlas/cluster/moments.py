"""Moments: what counts once, however many images it gave. M rows, K entries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from damage_atlas.neighbours import Ints
from damage_atlas.store import Run
from damage_atlas.times import MOMENT_S, has_time_of_day

_COLUMNS = ("image_id", "status", "file", "container", "tile_x", "frame_time_s", "asset_id", "captured_at")


def moments_of(run: Run) -> dict[str, str]:
    """What names the moment that each image shows: tiles of a photo share one, and so do frames of ten seconds."""
    table = run.read_table("catalog", "observations.parquet", list(_COLUMNS))
    moments: dict[str, str] = {}
    for image_id, status, file, container, tile_x, time_s, asset, taken in zip(
        *(table[name].to_pylist() for name in _COLUMNS), strict=True
    ):
        if status != "ok" or image_id in moments:
            continue
        if time_s is not None:
            moments[image_id] = f"{container}/{file}@{time_s // MOMENT_S}"
        elif tile_x is None and asset is not None and has_time_of_day(taken):
            moments[image_id] = f"{asset}@{taken.timestamp() // MOMENT_S}"
        else:
            moments[image_id] = f"{container}/{file}"
    return moments


def first_of_moment(moment_MK: Ints, own_M: Ints) -> NDArray[np.bool_]:
    """Which of a row's entries are the first of their moment, and not of the row's own."""
    order = np.argsort(moment_MK, axis=1, kind="stable")
    ordered = np.take_along_axis(moment_MK, order, axis=1)
    is_first = np.ones_like(ordered, dtype=bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty_like(is_first)
    np.put_along_axis(first, order, is_first, axis=1)
    return np.asarray(first & (moment_MK != own_M[:, None]))

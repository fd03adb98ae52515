"""Augmentation depends on seed, iteration and place in the batch alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from damage_atlas.train.augment import augment

PLAIN: dict[str, Any] = {"erasing_probability": 0.0, "flips": False, "brightness": 0.0}
ALL: dict[str, Any] = {"erasing_probability": 0.7, "flips": True, "brightness": 0.2, "crop_side": 0.6, "shift": 0.1}


def pictures(n: int = 6, side: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_a_shard_gets_what_the_whole_batch_gets() -> None:
    batch = pictures()
    whole = augment(batch, seed=3, iteration=5, first_position=0, **ALL)
    parts = [augment(batch[i : i + 2], seed=3, iteration=5, first_position=i, **ALL) for i in (0, 2, 4)]
    assert (whole == np.concatenate(parts)).all()


@pytest.mark.parametrize("other", [{"seed": 4}, {"iteration": 6}, {"first_position": 1}, {"view": 1}])
def test_another_draw_is_another_picture(other: dict[str, int]) -> None:
    where = {"seed": 3, "iteration": 5, "first_position": 0}
    assert (augment(pictures(), **where, **ALL) != augment(pictures(), **(where | other), **ALL)).any()


def test_without_anything_pictures_stay_as_they_are() -> None:
    batch = pictures()
    changed = augment(batch, seed=0, iteration=0, first_position=0, **PLAIN)
    assert (changed == batch).all() and changed is not batch


def test_the_input_is_never_changed() -> None:
    batch = pictures()
    before = batch.copy()
    augment(batch, seed=0, iteration=0, first_position=0, **ALL)
    assert (batch == before).all()


def test_no_pictures_are_no_trouble() -> None:
    assert augment(pictures(0), seed=0, iteration=0, first_position=0, **ALL).shape == (0, 24, 24, 3)


def test_a_crop_of_one_colour_is_of_that_colour() -> None:
    batch = np.full((4, 16, 16, 3), (10, 200, 90), np.uint8)
    crops = augment(batch, seed=1, iteration=2, first_position=0, crop_side=0.5, shift=0.3, **PLAIN)
    assert (crops == batch).all()


def test_a_crop_is_a_magnified_piece_of_its_picture() -> None:
    """A ramp that rises by 4 a pixel rises by 4 times the crop's side in it, and starts where the crop lies."""
    side = 48
    ramp = np.broadcast_to((np.arange(side) * 4)[None, :, None], (side, side, 3)).astype(np.uint8)
    crops = augment(ramp[None].repeat(20, axis=0), seed=1, iteration=0, first_position=0, crop_side=0.5, **PLAIN)
    slopes = []
    for crop in crops.astype(float):
        row = crop[side // 2, 2:-2, 0]
        slope = np.polyfit(np.arange(len(row)), row, 1)[0]
        slopes.append(slope / 4)
        assert np.abs(np.diff(row) - slope).max() <= 1.01, "straight but for rounding"
        assert row.min() >= 0 and row.max() <= 4 * (side - 1)
    assert 0.49 < min(slopes) < 0.65 and 0.85 < max(slopes) <= 1.01


def test_what_lies_outside_is_mirrored_in() -> None:
    side = 32
    ramp = np.broadcast_to((np.arange(side) * 8)[None, :, None], (side, side, 3)).astype(np.uint8)
    crops = augment(ramp[None].repeat(30, axis=0), seed=2, iteration=0, first_position=0, shift=0.25, **PLAIN)
    turned = [crop for crop in crops.astype(int) if np.sign(np.diff(crop[4, :, 0])).min() < 0]
    assert turned and all(np.abs(np.diff(crop[4, :, 0])).max() <= 9 for crop in turned), "no black border, no jump"

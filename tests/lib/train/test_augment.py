"""Augmentation depends on seed, iteration and place in the batch alone, and does what its settings say."""

from __future__ import annotations

import colorsys
import hashlib
import sys
from typing import Any

import numpy as np
import pytest
import torch

from damage_atlas.errors import SpecError
from damage_atlas.spec import Settings, TrainSpec, with_overrides
from damage_atlas.train.augment import _all_at_once, augment, augment_on, draw_changes

PLAIN: dict[str, Any] = {"erasing_probability": 0.0, "flips": False, "brightness": 0.0}
COLOUR: dict[str, Any] = {"contrast": 0.4, "saturation": 0.5, "hue": 0.2}
ALL: dict[str, Any] = {"erasing_probability": 0.7, "crop_side": 0.6, "shift": 0.1, "rotation": 40.0, **COLOUR}
WHERE = {"iteration": 5, "first_position": 2}


def pictures(n: int = 6, height: int = 24, width: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def augmented(batch: np.ndarray, *, seed: int = 0, iteration: int = 0, first: int = 0, view: int = 0, **settings: Any):
    spec = TrainSpec(seed=seed, **settings)
    return augment(spec, batch, iteration=iteration, first_position=first, view=view)


def test_a_shard_gets_what_the_whole_batch_gets() -> None:
    batch = pictures()
    whole = augmented(batch, seed=3, iteration=5, **ALL)
    parts = [augmented(batch[i : i + 2], seed=3, iteration=5, first=i, **ALL) for i in (0, 2, 4)]
    assert (whole == np.concatenate(parts)).all()


@pytest.mark.parametrize("other", [{"seed": 4}, {"iteration": 6}, {"first": 1}, {"view": 1}])
def test_another_draw_is_another_picture(other: dict[str, int]) -> None:
    where = {"seed": 3, "iteration": 5}
    assert (augmented(pictures(), **where, **ALL) != augmented(pictures(), **(where | other), **ALL)).any()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        pytest.param({}, "cd05b2ca44d68d7d", id="the defaults"),
        pytest.param({"flips": False, "brightness": 0.0}, "a53605c5207d6774", id="erasing alone"),
    ],
)
def test_the_defaults_make_the_pictures_of_recorded_trainings(settings: dict[str, Any], wanted: str) -> None:
    changed = augmented(pictures(32, 40, 40), seed=3, iteration=5, first=2, **settings)
    assert hashlib.sha256(changed.tobytes()).hexdigest().startswith(wanted)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="the defaults"),
        pytest.param(PLAIN, id="nothing"),
        pytest.param({"erasing_probability": 1.0, "erasing_fill": "mean"}, id="mean"),
        pytest.param({"erasing_probability": 1.0, "erasing_fill": "zero"}, id="zero"),
        pytest.param({**PLAIN, "crop_side": 0.6, "rotation": 90.0}, id="resampled"),
        pytest.param(ALL, id="all"),
    ],
)
@pytest.mark.parametrize("view", [0, 1])
def test_a_gpu_s_way_makes_the_same_pictures(settings: dict[str, Any], view: int) -> None:
    spec, batch = TrainSpec(seed=4, **settings), pictures(16, 20, 30)
    changes = draw_changes(spec, batch.shape, 5, 2, view)
    at_once = _all_at_once(spec, torch.from_numpy(batch.copy()), changes)
    assert np.array_equal(at_once.numpy(), augment(spec, batch, **WHERE, view=view))
    assert at_once.dtype == torch.uint8 and at_once.is_contiguous()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("settings", "tolerance"), [({}, 0), (ALL, 2)])
def test_a_gpu_makes_the_same_pictures(settings: dict[str, Any], tolerance: int) -> None:
    spec, batch = TrainSpec(seed=4, **settings), pictures(16, 160, 160)
    on_gpu = augment_on(torch.device("cuda"), spec, batch, **WHERE)
    assert on_gpu.is_cuda
    differences = np.abs(on_gpu.cpu().numpy().astype(int) - augment(spec, batch, **WHERE).astype(int))
    assert differences.max() <= tolerance


def test_on_a_cpu_it_is_the_cpu_s_way() -> None:
    on_cpu = augment_on(torch.device("cpu"), TrainSpec(), pictures(), **WHERE)
    assert np.array_equal(on_cpu.numpy(), augment(TrainSpec(), pictures(), **WHERE))


def test_without_anything_pictures_stay_as_they_are() -> None:
    batch = pictures()
    changed = augmented(batch, **PLAIN)
    assert (changed == batch).all() and changed is not batch


def test_the_input_is_never_changed() -> None:
    batch = pictures()
    before = batch.copy()
    augmented(batch, **ALL)
    assert (batch == before).all()


def test_no_pictures_are_no_trouble() -> None:
    assert augmented(pictures(0), **ALL).shape == (0, 24, 24, 3)


def test_a_crop_of_one_colour_is_of_that_colour() -> None:
    batch = np.full((4, 16, 16, 3), (10, 200, 90), np.uint8)
    crops = augmented(batch, seed=1, iteration=2, crop_side=0.5, shift=0.3, **PLAIN)
    assert (crops == batch).all()


def test_a_crop_is_a_magnified_piece_of_its_picture() -> None:
    """A ramp that rises by 4 a pixel rises by 4 times the crop's side in it, and starts where the crop lies."""
    side = 48
    ramp = np.broadcast_to((np.arange(side) * 4)[None, :, None], (side, side, 3)).astype(np.uint8)
    crops = augmented(ramp[None].repeat(20, axis=0), seed=1, crop_side=0.5, **PLAIN)
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
    crops = augmented(ramp[None].repeat(30, axis=0), seed=2, shift=0.25, **PLAIN)
    turned = [crop for crop in crops.astype(int) if np.sign(np.diff(crop[4, :, 0])).min() < 0]
    assert turned and all(np.abs(np.diff(crop[4, :, 0])).max() <= 9 for crop in turned), "no black border, no jump"


def boxes(n: int = 300, height: int = 60, width: int = 90, **settings: Any) -> np.ndarray:
    """Top, bottom, left and right of what is erased, of all pictures that anything is."""
    spec = TrainSpec(**settings)
    return np.array([c.box for c in draw_changes(spec, (n, height, width, 3), 0, 0, 0) if c.box is not None])


def test_boxes_keep_to_their_areas_and_aspects() -> None:
    drawn = boxes(erasing_probability=1.0, erasing_area=(0.1, 0.3), erasing_aspect=(0.5, 1.5))
    heights, widths = drawn[:, 1] - drawn[:, 0], drawn[:, 3] - drawn[:, 2]
    areas, aspects = heights * widths / (60 * 90), heights / widths
    assert len(drawn) == 300 and drawn.min() >= 0 and (drawn[:, 1] <= 60).all() and (drawn[:, 3] <= 90).all()
    assert 0.095 < areas.min() < 0.12 and 0.28 < areas.max() < 0.31
    assert 0.48 < aspects.min() < 0.55 and 1.4 < aspects.max() < 1.56


def test_the_probability_is_that_of_a_box() -> None:
    assert len(boxes(erasing_probability=0.25)) / 300 == pytest.approx(0.25, abs=0.07)
    assert len(boxes(erasing_probability=0.0)) == 0


def test_a_box_that_cannot_fit_leaves_the_picture_as_it_is() -> None:
    batch = pictures(4, 30, 30)
    nothing = {**PLAIN, "erasing_probability": 1.0, "erasing_area": (1.0, 1.0), "erasing_aspect": (1.0, 1.0)}
    assert np.array_equal(augmented(batch, **nothing), batch)


@pytest.mark.parametrize("fill", ["random", "mean", "zero"])
def test_a_box_is_filled_as_asked_and_nothing_else_changes(fill: str) -> None:
    batch = pictures(8, 40, 40)
    settings = {**PLAIN, "erasing_probability": 1.0, "erasing_fill": fill}
    changed = augmented(batch, **settings)
    for before, after, (top, bottom, left, right) in zip(batch, changed, boxes(8, 40, 40, **settings), strict=True):
        inside = after[top:bottom, left:right].reshape(-1, 3).copy()
        after[top:bottom, left:right] = before[top:bottom, left:right]
        assert np.array_equal(after, before)
        if fill == "random":
            assert len(np.unique(inside)) > min(60, inside.size // 4)
        else:
            assert (inside == (np.rint(before.mean((0, 1))) if fill == "mean" else 0)).all()


def test_rotation_turns_ramps_by_up_to_its_degrees_at_their_slopes() -> None:
    """On a picture that is wider than high; what comes from outside is mirrored in, without a border."""
    height, width = 40, 80
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([3 * x, 3 * y, 0 * x], axis=-1).astype(np.uint8)
    turned = augmented(ramps[None].repeat(40, axis=0), rotation=30.0, **PLAIN).astype(float)
    angles = []
    for picture in turned[:, 14:26, 28:52]:  # what no turn by 30 degrees takes out of the picture
        (down_x, right_x), (down_y, right_y) = ((g.mean() for g in np.gradient(picture[..., i])) for i in (0, 1))
        angles.append(np.degrees(np.arctan2(down_x, right_x)))
        assert np.hypot(down_x, right_x) == pytest.approx(3, abs=0.1)
        assert (down_y, right_y) == pytest.approx((right_x, -down_x), abs=0.3), "at right angles"
    assert -30.5 < min(angles) < -22 and 22 < max(angles) < 30.5
    steps = [np.abs(np.diff(turned, axis=axis)).max() for axis in (1, 2)]
    assert max(steps) <= 4, "no border, no jump"


def test_crop_and_rotation_are_one_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    sample = torch.nn.functional.grid_sample
    monkeypatch.setattr(
        "torch.nn.functional.grid_sample", lambda *args, **kwargs: calls.append(1) or sample(*args, **kwargs)
    )
    augmented(pictures(), **ALL)
    assert len(calls) == 1


def colours(n: int, **settings: Any) -> np.ndarray:
    """Factor of contrast, factor of saturation and turn of the hue of n pictures."""
    return np.array([c.colour for c in draw_changes(TrainSpec(**settings), (n, 4, 4, 3), 0, 0, 0)])


def test_colours_keep_to_their_settings() -> None:
    drawn = colours(300, **COLOUR)
    for column, middle, reach in zip(drawn.T, (1, 1, 0), (0.4, 0.5, 0.4 * np.pi), strict=True):
        assert middle - reach <= column.min() < middle - 0.9 * reach
        assert middle + 0.9 * reach < column.max() <= middle + reach


@pytest.mark.parametrize("name", COLOUR)
def test_colour_is_what_its_definition_says(name: str) -> None:
    batch = pictures(5, 6, 6)
    changed = augmented(batch, **PLAIN, **{name: COLOUR[name]})
    drawn = colours(5, **PLAIN, **{name: COLOUR[name]})
    for before, after, (contrast, saturation, turn) in zip(batch, changed, drawn, strict=True):
        values = before / 255
        grey = values @ (0.299, 0.587, 0.114)
        if name == "contrast":
            wanted = grey.mean() + contrast * (values - grey.mean())
        elif name == "saturation":
            wanted = grey[..., None] + saturation * (values - grey[..., None])
        else:
            wanted = np.empty_like(values)
            for place in np.ndindex(6, 6):
                hue, *others = colorsys.rgb_to_hsv(*values[place])
                wanted[place] = colorsys.hsv_to_rgb((hue + turn / (2 * np.pi)) % 1, *others)
        assert np.abs(after - wanted.clip(0, 1) * 255).max() <= 0.51, "rounded"
        assert (after != before).any()


def test_kornia_is_asked_for_colour_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it takes seconds."""
    monkeypatch.setitem(sys.modules, "kornia", None)
    augmented(pictures(), **{**ALL, "contrast": 0, "saturation": 0, "hue": 0})
    with pytest.raises(ImportError):
        augmented(pictures(), contrast=0.1)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("erasing_area=[0.5,0.2]", r"train\.erasing_area: \[0\.5, 0\.2\] must be the smallest and the largest share"),
        ("erasing_area=[0,0.2]", r"above 0 up to 1"),
        ("erasing_area=[0.1,1.2]", r"above 0 up to 1"),
        (
            "erasing_aspect=[3,0.3]",
            r"train\.erasing_aspect: \[3, 0\.3\] must be the least and the largest height / width",
        ),
        ("erasing_aspect=[0,1]", r"train\.erasing_aspect"),
        ("erasing_fill=noise", r"train\.erasing_fill"),
        ("rotation=-1", r"train\.rotation"),
        ("rotation=181", r"train\.rotation"),
        ("contrast=1.5", r"train\.contrast"),
        ("saturation=-0.1", r"train\.saturation"),
        ("hue=0.6", r"train\.hue"),
    ],
)
def test_settings_out_of_range_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        with_overrides(Settings(), [f"train.{assignment}"])


def test_ranges_may_be_set_on_the_command_line() -> None:
    spec = with_overrides(Settings(), ["train.erasing_area=[0.1,0.2]", "train.erasing_aspect=[1,2]"]).train
    assert (spec.erasing_area, spec.erasing_aspect) == ((0.1, 0.2), (1.0, 2.0))

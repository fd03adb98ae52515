"""Augmentation: drawn by (seed, iteration, global position), so that the number of workers does not matter.

What happens to a picture is drawn on the host, by a generator of its own, whatever then changes the pixels: numpy,
picture by picture, where the network runs on a CPU; torch, the whole shard at once, where it runs on a GPU. Both make
the same pictures (docs/adr/0010-pixels-change-on-the-device.md).

Random erasing after Zhong et al. 2017 (arXiv:1708.04896), as in the paper; the rest is ours. Axes: B pictures, H x W
pixels, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from damage_atlas.spec import TrainSpec

Pixels = NDArray[np.uint8]

_ERASING_TRIES = 10
_VIEW_STREAM = 0x5EED  # keeps a second view's draws apart from the first's


@dataclass(frozen=True)
class Change:
    """What happens to one picture, in the order of the fields.

    Attributes:
        affine_23: where in the picture a place of the result lies, both from -1 to 1 (x, y); None: where it was.
        upside_down, mirrored: flips.
        gain_table: what each of the 256 values becomes; None: what it was.
        colour: factor of contrast, factor of saturation, turn of the hue in radians; None: as it was.
        box: what is erased, as top, bottom, left, right; None: nothing.
        noise_HWC: what the box is filled with, of the box's size, if it is filled with random pixels.
    """

    affine_23: NDArray[np.float32] | None
    upside_down: bool
    mirrored: bool
    gain_table: Pixels | None
    colour: tuple[float, float, float] | None
    box: tuple[int, int, int, int] | None
    noise_HWC: Pixels | None


def augment(spec: TrainSpec, pixels_BHWC: Pixels, *, iteration: int, first_position: int, view: int = 0) -> Pixels:
    """A changed copy of a shard's pictures, made by the CPU.

    Args:
        pixels_BHWC: uint8 pictures, RGB.
        first_position: position in the global batch of the shard's first picture.
        view: which of several views of the same pictures.
    """
    return _one_by_one(spec, pixels_BHWC, draw_changes(spec, pixels_BHWC.shape, iteration, first_position, view))


def augment_on(
    device: torch.device, spec: TrainSpec, pixels_BHWC: Pixels, *, iteration: int, first_position: int, view: int = 0
) -> Tensor:
    """The same pictures as a tensor on ``device``, made there; resampled ones may differ by one grey value."""
    if device.type == "cpu":
        return torch.from_numpy(
            augment(spec, pixels_BHWC, iteration=iteration, first_position=first_position, view=view)
        )
    changes = draw_changes(spec, pixels_BHWC.shape, iteration, first_position, view)
    return _all_at_once(spec, torch.from_numpy(pixels_BHWC).to(device), changes)


def draw_changes(
    spec: TrainSpec, shape: tuple[int, ...], iteration: int, first_position: int, view: int
) -> list[Change]:
    """What happens to each picture of a shard of this shape, B x H x W x C: all that chance has a say in."""
    return [
        _draw(np.random.default_rng([spec.seed, iteration, first_position + i, view * _VIEW_STREAM]), spec, shape[1:])
        for i in range(shape[0])
    ]


def _draw(rng: np.random.Generator, spec: TrainSpec, shape_HWC: tuple[int, ...]) -> Change:
    # What is off draws nothing, and the order stays: else recorded trainings could not be repeated.
    affine_23 = _draw_affine(rng, spec, shape_HWC)
    upside_down, mirrored = (bool(rng.random() < 0.5) for _ in range(2)) if spec.flips else (False, False)
    gain_table = None
    if spec.brightness:
        gain = 1 + spec.brightness * np.clip(rng.standard_normal(), -2, 2)
        gain_table = np.clip(np.arange(256) * gain, 0, 255).astype(np.uint8)
    colour = None
    if spec.contrast or spec.saturation or spec.hue:
        contrast, saturation, hue = rng.uniform(-1, 1, 3) * (spec.contrast, spec.saturation, spec.hue)
        colour = float(1 + contrast), float(1 + saturation), float(2 * math.pi * hue)
    box = noise_HWC = None
    if rng.random() < spec.erasing_probability:
        box = _draw_box(rng, spec, shape_HWC)
        if box is not None and spec.erasing_fill == "random":
            top, bottom, left, right = box
            noise_HWC = rng.integers(0, 256, (bottom - top, right - left, shape_HWC[2]), dtype=np.uint8)
    return Change(affine_23, upside_down, mirrored, gain_table, colour, box, noise_HWC)


def _draw_affine(rng: np.random.Generator, spec: TrainSpec, shape_HWC: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Crop and rotation as one map, so that a picture is resampled once; the crop's own centre stays where it is."""
    crops = spec.crop_side < 1 or spec.shift > 0
    if not crops and not spec.rotation:
        return None
    affine_23, side = np.zeros((2, 3), np.float32), 1.0
    if crops:
        side = rng.uniform(spec.crop_side, 1)
        # In affine_grid's units a picture reaches from -1 to 1.
        affine_23[:, 2] = rng.uniform(-1, 1, 2) * (1 - side + 2 * spec.shift)
    affine_23[0, 0] = affine_23[1, 1] = side
    if spec.rotation:
        angle, elongation = math.radians(rng.uniform(-spec.rotation, spec.rotation)), shape_HWC[0] / shape_HWC[1]
        cos, sin = math.cos(angle), math.sin(angle)
        # Rotated in pixels: these units are shorter along the picture's shorter side.
        affine_23[:, :2] = side * np.array([[cos, -sin * elongation], [sin / elongation, cos]])
    return affine_23


def _draw_box(
    rng: np.random.Generator, spec: TrainSpec, shape_HWC: tuple[int, ...]
) -> tuple[int, int, int, int] | None:
    """The box of random erasing: top, bottom, left, right; None where none of several fits inside the picture.

    The aspect is drawn evenly on a log scale, so that as many boxes lie as stand; Zhong et al. draw it evenly.
    """
    height, width = shape_HWC[:2]
    flattest, steepest = spec.erasing_aspect
    for _ in range(_ERASING_TRIES):
        area = rng.uniform(*spec.erasing_area) * height * width
        aspect = np.exp(rng.uniform(np.log(flattest), np.log(steepest)))
        h, w = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < h < height and 0 < w < width:
            y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
            return y, y + h, x, x + w
    return None


def _one_by_one(spec: TrainSpec, pixels_BHWC: Pixels, changes: Sequence[Change]) -> Pixels:
    """For the CPU: each picture stays in its cache."""
    if any(c.affine_23 is not None for c in changes):
        pixels_BHWC = _resample(torch.from_numpy(np.ascontiguousarray(pixels_BHWC)), changes).numpy()
    changed = np.empty_like(pixels_BHWC)
    for i, (picture, change) in enumerate(zip(pixels_BHWC, changes, strict=True)):
        if change.upside_down:
            picture = picture[::-1]
        if change.mirrored:
            picture = picture[:, ::-1]
        changed[i] = picture if change.gain_table is None else change.gain_table[picture]
    _recolour(spec, torch.from_numpy(changed), changes)
    for picture, change in zip(changed, changes, strict=True):
        if change.box is None:
            continue
        top, bottom, left, right = change.box
        if spec.erasing_fill == "mean":
            picture[top:bottom, left:right] = np.rint(picture.mean(axis=(0, 1)))
        else:
            picture[top:bottom, left:right] = 0 if change.noise_HWC is None else change.noise_HWC
    return changed


def _all_at_once(spec: TrainSpec, pixels_BHWC: Tensor, changes: Sequence[Change]) -> Tensor:
    """For a GPU: a fixed number of kernels on the pixels' device, and no waiting for what they give."""
    device, (height, width) = pixels_BHWC.device, pixels_BHWC.shape[1:3]

    def each(values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device)[:, None, None, None]

    pixels_BHWC = _resample(pixels_BHWC, changes)
    for axis, flips in ((1, [c.upside_down for c in changes]), (2, [c.mirrored for c in changes])):
        pixels_BHWC = torch.where(each(flips, torch.bool), pixels_BHWC.flip(axis), pixels_BHWC)
    tables = [c.gain_table for c in changes if c.gain_table is not None]
    if tables:
        places = pixels_BHWC.int() + each(range(0, 256 * len(tables), 256), torch.int32)
        values = torch.from_numpy(np.concatenate(tables)).to(device)
        pixels_BHWC = values.index_select(0, places.flatten()).view_as(pixels_BHWC)
    _recolour(spec, pixels_BHWC, changes)
    if any(c.box for c in changes):
        boxes = zip(*(c.box or (0, 0, 0, 0) for c in changes), strict=True)
        top, bottom, left, right = (each(edges, torch.int64) for edges in boxes)
        y = torch.arange(height, device=device)[:, None, None]
        x = torch.arange(width, device=device)[:, None]
        is_erased_BHW1 = (top <= y) & (y < bottom) & (left <= x) & (x < right)
        if spec.erasing_fill == "random":
            # Picture by picture, row by row: the order that masked_scatter takes its values in.
            noise = np.concatenate([c.noise_HWC.ravel() for c in changes if c.noise_HWC is not None])
            pixels_BHWC = pixels_BHWC.masked_scatter(is_erased_BHW1, torch.from_numpy(noise).to(device))
        elif spec.erasing_fill == "mean":
            sums = pixels_BHWC.sum((1, 2), dtype=torch.int64, keepdim=True)
            means = (sums.double() / (height * width)).round().to(torch.uint8)
            pixels_BHWC = torch.where(is_erased_BHW1, means, pixels_BHWC)
        else:
            pixels_BHWC = pixels_BHWC.masked_fill(is_erased_BHW1, 0)
    return pixels_BHWC


def _resample(pixels_BHWC: Tensor, changes: Sequence[Change]) -> Tensor:
    """Each picture under its affine map, at its own size; what lies outside is mirrored in.

    Torch's grid_sample itself: kornia.geometry's warps and crops end in it as well, after an inversion of matrices
    that are drawn in its own units here.
    """
    affines = [c.affine_23 for c in changes if c.affine_23 is not None]
    if not affines:
        return pixels_BHWC
    images = pixels_BHWC.permute(0, 3, 1, 2).float()
    affine_B23 = torch.from_numpy(np.stack(affines)).to(images.device)
    grid = functional.affine_grid(affine_B23, list(images.shape), align_corners=False)
    changed = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return changed.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _recolour(spec: TrainSpec, pixels_BHWC: Tensor, changes: Sequence[Change]) -> None:
    """Contrast about the mean grey value, saturation about each pixel's grey value, hue in HSV; in place."""
    colours = [c.colour for c in changes if c.colour is not None]
    if not colours:
        return
    from kornia import enhance  # takes a second or two to import, and is off by default

    images = pixels_BHWC.permute(0, 3, 1, 2).float().div_(255)
    contrast_B, saturation_B, hue_B = torch.tensor(colours).to(images.device).unbind(1)
    if spec.contrast:
        images = enhance.adjust_contrast_with_mean_subtraction(images, contrast_B)
    if spec.saturation:
        images = enhance.adjust_saturation_with_gray_subtraction(images, saturation_B)
    if spec.hue:
        images = enhance.adjust_hue(images, hue_B)
    pixels_BHWC.copy_(images.mul(255).round_().clamp_(0, 255).permute(0, 2, 3, 1))

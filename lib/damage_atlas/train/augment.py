"""Augmentation: drawn by (seed, iteration, global position), so that the number of workers does not matter.

Random erasing after Zhong et al. 2017 (arXiv:1708.04896), as in the paper; crops, flips and brightness are ours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from damage_atlas.spec import TrainSpec

Pixels = NDArray[np.uint8]

_ERASED_AREA = (0.02, 0.4)  # share of the picture
_ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width
_ERASING_TRIES = 10
_VIEW_STREAM = 0x5EED  # keeps a second view's draws apart from the first's


def augment(
    pixels_BHWC: Pixels,
    *,
    seed: int,
    iteration: int,
    first_position: int,
    view: int = 0,
    erasing_probability: float = 0.5,
    flips: bool = True,
    brightness: float = 0.2,
    crop_side: float = 1.0,
    shift: float = 0.0,
) -> Pixels:
    """A changed copy of a shard's pictures.

    Args:
        pixels_BHWC: uint8 pictures.
        first_position: position in the global batch of the shard's first picture.
        view: which of several views of the same pictures.
        brightness: standard deviation of the gain, as a share.
        crop_side: smallest side of a random crop, as a share of the picture's; 1 for none.
        shift: how far a crop may reach over the picture's edge, as a share of its side; mirrored there.
    """
    generators = [
        np.random.default_rng([seed, iteration, first_position + i, view * _VIEW_STREAM])
        for i in range(len(pixels_BHWC))
    ]
    if (crop_side < 1 or shift > 0) and len(pixels_BHWC):
        pixels_BHWC = _crop(pixels_BHWC, generators, crop_side, shift)
    changed = np.empty_like(pixels_BHWC)
    for i, (picture, rng) in enumerate(zip(pixels_BHWC, generators, strict=True)):
        if flips:
            if rng.random() < 0.5:
                picture = picture[::-1]
            if rng.random() < 0.5:
                picture = picture[:, ::-1]
        if brightness:
            gain = 1 + brightness * np.clip(rng.standard_normal(), -2, 2)
            table = np.clip(np.arange(256) * gain, 0, 255).astype(np.uint8)
            changed[i] = table[picture]
        else:
            changed[i] = picture
        if rng.random() < erasing_probability:
            _erase(changed[i], rng)
    return changed


def augment_as(spec: TrainSpec, pixels_BHWC: Pixels, *, iteration: int, first_position: int, view: int = 0) -> Pixels:
    """`augment` as the settings say."""
    return augment(
        pixels_BHWC,
        seed=spec.seed,
        iteration=iteration,
        first_position=first_position,
        view=view,
        erasing_probability=spec.erasing_probability,
        flips=spec.flips,
        brightness=spec.brightness,
        crop_side=spec.crop_side,
        shift=spec.shift,
    )


def _crop(pixels_BHWC: Pixels, generators: list[np.random.Generator], smallest: float, shift: float) -> Pixels:
    """Random crops at the pictures' own size: side and place drawn for each, what lies outside mirrored in."""
    affine_B23 = np.zeros((len(generators), 2, 3), np.float32)
    for affine_23, rng in zip(affine_B23, generators, strict=True):
        side = rng.uniform(smallest, 1)
        # In affine_grid's units a picture reaches from -1 to 1.
        affine_23[:, 2] = rng.uniform(-1, 1, 2) * (1 - side + 2 * shift)
        affine_23[0, 0] = affine_23[1, 1] = side
    images = torch.from_numpy(np.ascontiguousarray(pixels_BHWC)).permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(torch.from_numpy(affine_B23), list(images.shape), align_corners=False)
    crops = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return np.ascontiguousarray(crops.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())


def _erase(picture_HWC: Pixels, rng: np.random.Generator) -> None:
    height, width = picture_HWC.shape[:2]
    for _ in range(_ERASING_TRIES):
        area = rng.uniform(*_ERASED_AREA) * height * width
        aspect = np.exp(rng.uniform(np.log(_ERASED_ASPECT[0]), np.log(_ERASED_ASPECT[1])))
        h, w = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < h < height and 0 < w < width:
            y, x = rng.integers(0, height - h), rng.integers(0, width - w)
            picture_HWC[y : y + h, x : x + w] = rng.integers(0, 256, (h, w, picture_HWC.shape[2]), dtype=np.uint8)
            return

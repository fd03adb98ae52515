"""Augmentation of a shard of 64 pictures at 160 pixels: ours against kornia's modules, on a GPU if there is one.

    python -m bench.augment

On a GPU also ours on the CPU with the copy to the GPU, which is what `augment_on` saves there. kornia's modules draw
from torch's global generator, one for the whole batch; ours for each picture from (seed, iteration, position).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from kornia import augmentation

from bench.timing import compare
from damage_atlas.spec import TrainSpec
from damage_atlas.train.augment import augment, augment_on, draw_changes

_PICTURES, _SIDE = 64, 160
_OFF: dict[str, Any] = {"erasing_probability": 0.0, "flips": False, "brightness": 0.0}


def _flips() -> list[torch.nn.Module]:
    return [augmentation.RandomHorizontalFlip(p=0.5), augmentation.RandomVerticalFlip(p=0.5)]


RECIPES: dict[str, tuple[dict[str, Any], list[torch.nn.Module]]] = {
    "erasing, flips, brightness": (
        {},
        [*_flips(), augmentation.RandomBrightness((0.6, 1.4), p=1.0), augmentation.RandomErasing(p=0.5)],
    ),
    "rotation": (
        {**_OFF, "rotation": 20.0},
        [augmentation.RandomAffine(20.0, padding_mode="reflection", p=1.0)],
    ),
    "contrast, saturation, hue": (
        {**_OFF, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
        [augmentation.ColorJitter(0.0, 0.2, 0.2, 0.1, p=1.0)],
    ),
}


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (_PICTURES, _SIDE, _SIDE, 3), dtype=np.uint8)

    def done(made: torch.Tensor) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        assert made.shape == pixels.shape

    for name, (settings, modules) in RECIPES.items():
        spec, peer = TrainSpec(**settings), torch.nn.Sequential(*modules)

        def ours(spec: TrainSpec = spec) -> None:
            done(augment_on(device, spec, pixels, iteration=0, first_position=0))

        def on_the_cpu(spec: TrainSpec = spec) -> None:
            done(torch.from_numpy(augment(spec, pixels, iteration=0, first_position=0)).to(device))

        def kornias(peer: torch.nn.Module = peer) -> None:
            images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(255)
            done(peer(images).mul(255).to(torch.uint8).permute(0, 2, 3, 1))

        compare(f"{name} on {device}", "kornia's modules", ours, kornias, _PICTURES)
        if device.type != "cpu":
            compare(f"{name} on {device}", "on the CPU and copied", ours, on_the_cpu, _PICTURES)

        def drawn(spec: TrainSpec = spec) -> None:
            draw_changes(spec, pixels.shape, 0, 0, 0)

        compare(f"{name}: what is drawn", "drawn and done by the CPU", drawn, on_the_cpu, _PICTURES)


if __name__ == "__main__":
    main()

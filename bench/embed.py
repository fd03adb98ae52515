"""Embedding decoded pictures: our batches (channels-last, the machine's best precision) against the plain recipe."""

from __future__ import annotations

import numpy as np
import torch

from bench.timing import compare
from damage_atlas.network import DamageNet, embed_pixels, resolve_precision, to_input

_IMAGES = 256


def main() -> None:
    plain = DamageNet().eval()
    fast = DamageNet().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = resolve_precision("auto", torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (_IMAGES, 160, 160, 3), dtype=np.uint8)

    def plainly() -> None:
        with torch.no_grad():
            for start in range(0, _IMAGES, 64):
                plain(to_input(pixels[start : start + 64]).contiguous())

    compare(
        f"forward, channels-last, {str(dtype).removeprefix('torch.')}",
        "float32 in the default layout",
        lambda: embed_pixels(fast, pixels, 64, dtype),
        plainly,
        _IMAGES,
    )

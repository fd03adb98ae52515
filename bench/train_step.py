"""One MN-pair training step: two shards on two threads against the whole batch at once, float32, default layout."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from bench.timing import compare
from damage_atlas.network import DamageNet, to_input
from damage_atlas.train.losses import MNPairLoss

_BATCH, _SHARDS = 64, 2


def main() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (_BATCH, 160, 160, 3), dtype=np.uint8)
    labels = torch.arange(_BATCH) % 4
    criterion = MNPairLoss()
    plain = DamageNet()
    fast = DamageNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = list(fast.parameters())
    pool = ThreadPoolExecutor(_SHARDS, initializer=torch.set_num_threads, initargs=(1,))
    images = to_input(pixels)
    shards = images.chunk(_SHARDS)
    default_layout = images.contiguous()

    def ours() -> None:
        embeddings = list(pool.map(fast, shards))
        gathered = torch.cat([e.detach() for e in embeddings]).requires_grad_()
        (gradient,) = torch.autograd.grad(criterion(gathered, labels), gathered)
        parts = gradient.chunk(_SHARDS)
        list(
            pool.map(
                lambda pair: torch.autograd.grad(pair[0], parameters, pair[1]), zip(embeddings, parts, strict=True)
            )
        )

    def plainly() -> None:
        plain.zero_grad()
        criterion(plain(default_layout), labels).backward()

    compare("training step, two shards, channels-last", "whole batch, default layout", ours, plainly, _BATCH)

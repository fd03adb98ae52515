"""A tiny labelled archive that a network learns in seconds: stripes of four directions under noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("across", "down", "dots")


def picture(kind: str, seed: int, side: int = 64) -> np.ndarray:
    """A side x side x 3 picture of one kind."""
    rng = np.random.default_rng([seed, CLASSES.index(kind)])
    y, x = np.mgrid[:side, :side]
    phase, period = rng.uniform(0, 6.3), rng.uniform(7, 10)
    wave = {
        "across": np.sin(y * 6.283 / period + phase),
        "down": np.sin(x * 6.283 / period + phase),
        "dots": np.sin(x * 6.283 / period + phase) * np.sin(y * 6.283 / period + phase),
    }[kind]
    grey = rng.uniform(90, 150) + 45 * wave + rng.normal(0, 12, (side, side))
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def make_labelled(folder: Path, each: int = 24, side: int = 64) -> Path:
    """``folder/<class>/<n>.png``, ``each`` of every class."""
    for kind in CLASSES:
        (folder / kind).mkdir(parents=True)
        for n in range(each):
            Image.fromarray(picture(kind, n, side)).save(folder / kind / f"{n:03d}.png")
    return folder


def make_delivery(folder: Path, name: str, first: int, each: int = 10, side: int = 64) -> Path:
    """``folder/<name>/<asset>/<n>.png``: images without labels, two assets."""
    for kind in CLASSES:
        for n in range(first, first + each):
            asset = folder / name / f"asset-{n % 2}"
            asset.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(kind, 1000 + n, side)).save(asset / f"{kind}-{n:03d}.png")
    return folder

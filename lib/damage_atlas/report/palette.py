"""Colours and shapes of classes and clusters.

A cluster's look is a function of its id, so that it keeps it from version to version. With many clusters no set of
colours stays apart for everybody: shapes and the numbers on the map carry the difference too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

# Okabe and Ito's colours that stand out on white and on black alike.
_FIRST: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
# With this start and these steps the next twelve keep farthest from those above and from each other (in OKLab).
_START = 4.5
_LIGHTNESS: Final = (0.50, 0.68, 0.60)
_CHROMA = 0.15

SHAPES: Final = ("circle", "square", "triangle", "diamond")
NOISE_COLOR: Final = "#9aa0a6"


@dataclass(frozen=True)
class Look:
    """How the points of one class or cluster are drawn."""

    color: str  # #rrggbb
    shape: str  # one of SHAPES


def look(number: int) -> Look:
    """The look of cluster ``number`` (from 1), or of the class that comes ``number``-th in the alphabet."""
    index = max(number, 1) - 1
    shape = SHAPES[index % len(SHAPES)]
    if index < len(_FIRST):
        return Look(_FIRST[index], shape)
    return Look(_oklch(_LIGHTNESS[index % len(_LIGHTNESS)], _CHROMA, _START + index * _GOLDEN_ANGLE), shape)


def _oklch(lightness: float, chroma: float, hue: float) -> str:
    """OKLCH (hue in radians) as sRGB, clipped; matrices by Ottosson (bottosson.github.io/posts/oklab)."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * _gamma(min(max(value, 0.0), 1.0))):02x}" for value in linear)


def _gamma(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055

"""What is asked of decoders and what they answer. Axes: H x W pixels, three channels."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # H x W x 3, RGB, upright


class HasLimits(Protocol):
    """Settings that name the limits: ``spec.CatalogSpec``, which this package does not import."""

    @property
    def min_side(self) -> int: ...  # noqa: D102
    @property
    def max_pixels(self) -> int: ...  # noqa: D102
    @property
    def decode_limit_s(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Limits:
    """Which pictures are refused from their header alone, and how long decoding may take."""

    min_side: int = 8  # pixels
    max_pixels: int = 300_000_000
    decode_limit_s: float = 60.0
    max_bytes: int = 2 << 30  # of a picture's file: it is read as a whole

    @classmethod
    def of(cls, settings: HasLimits) -> Limits:
        """The limits that the settings name."""
        return cls(settings.min_side, settings.max_pixels, settings.decode_limit_s)


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True)
class PictureFacts:
    """What a file says about its picture."""

    width: int  # of the upright picture, pixels
    height: int
    format: str
    captured_at: datetime | None  # UTC; EXIF times without an offset are taken for UTC
    latitude: float | None  # degrees, WGS 84
    longitude: float | None


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are looked at.

    Attributes:
        every_s: seconds from one frame to the next.
        scene_change: None, or how far a frame must differ from the last one taken, as the mean difference of grey
            values from 0 to 1; then ``every_s`` is the least distance.
    """

    every_s: float = 1.0
    scene_change: float | None = None


@dataclass(frozen=True)
class VideoFacts:
    """What a video says about itself, and the frames that were chosen."""

    width: int  # upright, pixels
    height: int
    format: str
    captured_at: datetime | None  # of its first frame, UTC
    frames: tuple[tuple[int, float], ...]  # presentation timestamp in the stream's own units; seconds from the start
    damaged_packets: int
    restarts_at: float | None = None  # second after which times come again: by these no frame can be named

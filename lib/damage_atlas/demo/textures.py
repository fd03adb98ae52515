"""Surfaces and noise fields, made once per process and cropped for every image.

Making noise for each image would cost more than everything else together, so a `Bank` holds a few large
periodic fields and an image is a random crop, flipped and turned. All fields are periodic (filtered in the
Fourier domain), float32, and depend on the seed alone, so that every process has the same bank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]  # H x W

MATERIALS = ("deck", "pavement", "steel", "pipe")
BANK_PX = 512  # side of a field in the bank: a 256-pixel crop has 257 x 257 places, 8 orientations
SCALES = (0.8, 1.0, 1.25, 1.6)  # camera distance: one variant of each material per scale


@dataclass(frozen=True)
class Surface:
    """A material without damage: how bright each point is (around 1) and how high it stands (pixels)."""

    albedo: Field
    height: Field


@dataclass(frozen=True)
class Bank:
    """Everything an image is cut from.

    Attributes:
        surfaces: for each material one `Surface` per entry of `SCALES`.
        blobs: smooth fields of unit spread with features of 30 to 200 pixels: outlines of damage and stains.
        grains: fields of unit spread with features of 4 to 14 pixels: pits, rust crust, chipped edges.
        stones: the relief of broken concrete, -1 (mortar) to 1 (top of a stone), one field per stone size.
        nets: distance in pixels to the nearest border of an irregular cell pattern: map cracking.
        noise: white noise of unit spread: the camera's.
    """

    surfaces: dict[str, tuple[Surface, ...]]
    blobs: tuple[Field, ...]
    grains: tuple[Field, ...]
    stones: tuple[Field, ...]
    nets: tuple[Field, ...]
    noise: Field


def band_noise(
    rng: np.random.Generator,
    size_px: int,
    shortest_px: float,
    longest_px: float,
    slope: float = 1.0,
    stretch_x: float = 1.0,
) -> Field:
    """Periodic noise of zero mean and unit spread with wavelengths from ``shortest_px`` to ``longest_px``.

    Amplitude falls as frequency to the power ``-slope``; ``stretch_x`` > 1 draws features out along x.
    """
    spectrum = np.fft.rfft2(rng.standard_normal((size_px, size_px), dtype=np.float32))
    fy = np.fft.fftfreq(size_px).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(size_px).astype(np.float32)[None, :] * np.float32(stretch_x)
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = 1.0
    gain = frequency ** np.float32(-slope)
    gain *= np.exp(-((frequency * shortest_px) ** 4)) * (1 - np.exp(-((frequency * longest_px) ** 4)))
    gain[0, 0] = 0.0
    field: Field = np.fft.irfft2(spectrum * gain, s=(size_px, size_px)).astype(np.float32)
    field /= field.std()
    return field


def cells(rng: np.random.Generator, size_px: int, cell_px: float, wobble: NDArray[np.float32]) -> tuple[Field, Field]:
    """An irregular periodic pattern of cells: stones in mortar, or the polygons of a net of cracks.

    One seed point per square of a grid, moved at random; a point belongs to the nearest seed, and the
    difference between its distances to the two nearest seeds vanishes on a border (Worley noise, F2 - F1).

    Returns:
        The distance to the nearest border (pixels, roughly) and a random number 0..1 that is constant in
        each cell. ``wobble`` (2 x H x W pixels) bends the borders: none is straight.
    """
    n = round(size_px / cell_px)
    step = np.float32(size_px / n)
    seed_y_NN, seed_x_NN, shade_NN = rng.random((3, n, n), dtype=np.float32)
    y, x = np.indices((size_px, size_px), dtype=np.float32) + wobble
    y, x = y / step, x / step  # in grid squares from here on
    row, column = np.floor(y), np.floor(x)
    y -= row
    x -= column
    row, column = row.astype(np.intp), column.astype(np.intp)
    nearest = np.full((size_px, size_px), np.inf, dtype=np.float32)
    second, shade = nearest.copy(), np.zeros_like(nearest)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            seed = (row + i) % n * n + (column + j) % n
            dy = seed_y_NN.ravel()[seed] + np.float32(i) - y
            dx = seed_x_NN.ravel()[seed] + np.float32(j) - x
            distance = np.sqrt(dy * dy + dx * dx)
            closer = distance < nearest
            second = np.minimum(second, np.maximum(nearest, distance))
            nearest = np.where(closer, distance, nearest)
            shade = np.where(closer, shade_NN.ravel()[seed], shade)
    return (second - nearest) * step, shade


def _wobble(
    rng: np.random.Generator, size_px: int, reach_px: float, shortest_px: float, longest_px: float
) -> NDArray[np.float32]:
    """A displacement in y and one in x, each with a spread of ``reach_px``."""
    shift = np.stack([band_noise(rng, size_px, shortest_px, longest_px) for _ in range(2)])
    return (np.float32(reach_px) * shift).astype(np.float32)


def stone_relief(rng: np.random.Generator, size_px: int, stone_px: float) -> tuple[Field, Field]:
    """Broken or worn concrete: relief from -1 (mortar) to 1 (top of a stone), each stone's shade -1..1."""
    border, shade = cells(rng, size_px, stone_px, _wobble(rng, size_px, 0.12 * stone_px, 2, 12))
    present = shade > 0.3  # the rest of the cells are mortar, so that stones lie apart
    relief = np.clip(border / (0.45 * stone_px), 0, 1) * 2 * present - 1
    return relief.astype(np.float32), (present * (shade * 3 - 2)).astype(np.float32)


def make_surface(rng: np.random.Generator, material: str, size_px: int, scale: float) -> Surface:
    """A periodic ``size_px`` square of a material; ``scale`` > 1 is a camera that stands closer."""

    def noise(shortest: float, longest: float, slope: float = 1.0, stretch_x: float = 1.0) -> Field:
        return band_noise(rng, size_px, max(1.2, shortest * scale), longest * scale, slope, stretch_x)

    if material == "deck":  # float-finished concrete: fine sand, air pores, cloudy cement skin
        grain, pore, cloud = noise(1.5, 9, 0.8), noise(3, 9, 0.6), noise(30, 260, 1.5)
        pores = np.clip(pore - 2.3, 0, 1)
        albedo = 1 + 0.045 * noise(1.5, 12, 0.9) + 0.05 * cloud - 0.35 * pores
        height = 0.30 * grain - 2.2 * pores
    elif material == "pavement":  # worn surface: stones of all shades, set in darker mortar
        stones, shade = stone_relief(rng, size_px, 11 * scale)
        albedo = 1 + 0.05 * stones + 0.12 * shade + 0.05 * noise(1.5, 6) + 0.04 * noise(40, 260, 1.5)
        height = 0.9 * stones + 0.35 * noise(1.5, 5)
    elif material == "steel":  # rolled plate under old paint: brush lines, mill clouds, specks
        brush, speck = noise(1.3, 40, 0.8, stretch_x=18), noise(2, 6, 0.6)
        albedo = 1 + 0.05 * brush + 0.06 * noise(20, 200, 1.4) - 0.2 * np.clip(speck - 2.4, 0, 1)
        height = 0.16 * brush + 0.12 * noise(2, 8)
    elif material == "pipe":  # spun concrete, damp: smooth, slimy streaks that run down, lime specks
        streak = noise(6, 160, 1.3, stretch_x=6).T
        albedo = 1 + 0.07 * streak + 0.07 * noise(10, 120, 1.3) + 0.25 * np.clip(noise(3, 9) - 2.3, 0, 1)
        height = 0.22 * noise(2, 14, 1.0) + 0.5 * noise(14, 60, 1.2)
    else:
        raise ValueError(f"demo textures: no material {material!r}; choose one of {', '.join(MATERIALS)}.")
    return Surface(albedo.astype(np.float32), height.astype(np.float32))


def make_bank(seed: int) -> Bank:
    """The bank of one archive; one to two seconds."""
    rng = np.random.default_rng([seed, 0])
    return Bank(
        surfaces={m: tuple(make_surface(rng, m, BANK_PX, s) for s in SCALES) for m in MATERIALS},
        blobs=tuple(band_noise(rng, BANK_PX, 12, 200, 1.9) for _ in range(3)),
        grains=tuple(band_noise(rng, BANK_PX, s, 3 * s, 0.8) for s in (4, 5, 7)),
        stones=tuple(stone_relief(rng, BANK_PX, s)[0] for s in (9, 13)),
        nets=tuple(cells(rng, BANK_PX, c, _wobble(rng, BANK_PX, 0.11 * c, 9, 40))[0] for c in (44, 60)),
        noise=rng.standard_normal((BANK_PX, BANK_PX), dtype=np.float32),
    )


def crop(rng: np.random.Generator, field: Field, size_px: int, turn: bool = True) -> Field:
    """A random ``size_px`` square of ``field`` (a view), mirrored and, with ``turn``, transposed."""
    return crop_all(rng, (field,), size_px, turn)[0]


def crop_all(rng: np.random.Generator, fields: Sequence[Field], size_px: int, turn: bool = True) -> list[Field]:
    """The same random square of several fields of one size, as `crop` does it."""
    top, left = rng.integers(0, fields[0].shape[0] - size_px + 1, 2)
    flip_y, flip_x, transpose = rng.random(3) < 0.5
    window = (slice(top, top + size_px), slice(left, left + size_px))
    squares = [f[window][:: -1 if flip_y else 1, :: -1 if flip_x else 1] for f in fields]
    return [s.T for s in squares] if transpose and turn else squares

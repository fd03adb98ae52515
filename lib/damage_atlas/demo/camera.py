"""From a painted surface to the picture an inspector would open: light, colour, dirt, lens, sensor, text.

Light, white balance and exposure vary more between two images of one mode than between two modes: what
separates the modes is form, and colour statistics alone do not find it.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from damage_atlas.demo.damage import IMAGE_PX, PIXEL_X, PIXEL_Y, RUST, SOOT, Canvas
from damage_atlas.demo.textures import Bank, Field, crop

Rgb = tuple[float, float, float]

# Several paints and stones per material, shared between materials where they are in life.
TINTS: dict[str, tuple[Rgb, ...]] = {
    "deck": ((1.0, 0.98, 0.93), (0.97, 1.0, 1.0), (1.05, 0.98, 0.86), (1.10, 0.94, 0.78)),
    "pavement": ((1.0, 0.98, 0.95), (1.12, 0.96, 0.80), (0.96, 1.0, 1.03), (1.16, 0.92, 0.74)),
    "steel": ((0.98, 1.0, 1.03), (1.18, 0.90, 0.76), (0.90, 1.03, 1.0), (1.02, 1.0, 0.94)),
    "pipe": ((1.0, 0.97, 0.88), (1.12, 0.95, 0.76), (0.90, 1.02, 1.02), (0.98, 1.0, 0.96)),
}
CENTRED_X = (PIXEL_X - 127.5) / np.float32(127.5)
CENTRED_Y = (PIXEL_Y - 127.5) / np.float32(127.5)


@dataclass(frozen=True)
class Photo:
    """What all images of one structure share: material, its variant in the bank, paint, direction of light."""

    material: str
    variant: int
    tint: Rgb
    sun: float  # direction the light comes from, radians

    @staticmethod
    def of(rng: np.random.Generator, material: str, variants: int) -> "Photo":
        """A structure's look by chance; ``variants`` is how many of each material the bank has."""
        tint = TINTS[material][rng.integers(len(TINTS[material]))]
        return Photo(material, int(rng.integers(variants)), tint, float(rng.uniform(0, 2 * math.pi)))


def soil(canvas: Canvas, rng: np.random.Generator, bank: Bank) -> None:
    """Harmless brown and grey stains on any surface: colour alone must not give corrosion away."""
    for colour in (RUST, SOOT):
        if rng.random() < 0.22:
            cloud = crop(rng, bank.blobs[rng.integers(len(bank.blobs))], IMAGE_PX)
            cloud = cloud + np.float32(0.25) * crop(rng, bank.grains[2], IMAGE_PX)
            weight = np.clip(np.float32(rng.uniform(0.12, 0.32)) * (cloud + np.float32(0.4)), 0, 0.7)
            canvas.albedo *= 1 - np.float32(0.3) * weight
            canvas.stains.append((weight, colour))


def formwork(canvas: Canvas, rng: np.random.Generator) -> None:
    """The faint fins that the gaps between shuttering boards leave on concrete."""
    upright = rng.random() < 0.5
    across, along = (PIXEL_X, PIXEL_Y) if upright else (PIXEL_Y, PIXEL_X)
    first, board = rng.uniform(0, 150), rng.uniform(90, 150)
    offset = across + np.float32(rng.normal(0, 0.02)) * along - np.float32(first)
    offset -= np.float32(board) * np.round(offset / np.float32(board))
    canvas.height += np.float32(rng.uniform(0.5, 1.2)) * np.exp(-((offset / 2) ** 2))


def flood(canvas: Canvas, rng: np.random.Generator, bank: Bank) -> None:
    """The water of a sewer along the lower edge of the picture: dark, smooth, a pale line above it."""
    line = PIXEL_Y - np.float32(rng.uniform(0.80, 0.95) * IMAGE_PX)
    line += 2 * crop(rng, bank.blobs[1], IMAGE_PX, turn=False)
    wet = np.clip(line * np.float32(0.5), 0, 1)
    canvas.albedo *= 1 - np.float32(0.45) * wet
    canvas.albedo += np.float32(0.18) * np.exp(-((line / 3) ** 2))
    canvas.height *= 1 - np.float32(0.85) * wet


def room_light(rng: np.random.Generator, material: str) -> Field:
    """Brightness over the image: a slope, a dark rim, sometimes a shadow's soft edge, a pipe's curve."""
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.35)
    light: Field = 1 + CENTRED_X * np.float32(strength * math.cos(angle))
    light += CENTRED_Y * np.float32(strength * math.sin(angle))
    rim = rng.uniform(0, 0.18)
    if material == "pipe":  # the lamp sits on the camera, and the wall bends away above and below
        rim = rng.uniform(0.1, 0.3)
        light *= 1 - np.float32(rng.uniform(0.2, 0.4)) * (CENTRED_Y - np.float32(rng.uniform(-0.3, 0.3))) ** 2
    light *= 1 - np.float32(rim) * (CENTRED_X**2 + CENTRED_Y**2)
    if rng.random() < 0.15:
        turn, shift = rng.uniform(0, 2 * math.pi), rng.uniform(-0.5, 0.5)
        edge = CENTRED_X * np.float32(math.cos(turn)) + CENTRED_Y * np.float32(math.sin(turn)) - np.float32(shift)
        light *= 1 - np.float32(rng.uniform(0.2, 0.45)) * np.clip(edge * 4, 0, 1)
    return np.maximum(light, np.float32(0.15))


def develop(canvas: Canvas, light: Field, noise: Field, tint: Rgb, sun: float, relief: float) -> NDArray[np.uint8]:
    """Shades the relief, colours it and adds the sensor's noise; ``light`` and ``noise`` are in grey levels.

    Returns H x W x 3. The shade of a slope is its rise towards the light, as under a low lamp.
    """
    height, (h, w) = canvas.height, canvas.height.shape
    shade = np.ones((h, w), dtype=np.float32)
    shade[:, 1:] += np.float32(relief * math.cos(sun)) * (height[:, 1:] - height[:, :-1])
    shade[1:, :] += np.float32(relief * math.sin(sun)) * (height[1:, :] - height[:-1, :])
    np.clip(shade, 0.25, 1.9, out=shade)
    shade *= canvas.albedo
    shade *= light
    picture = np.empty((h, w, 3), dtype=np.uint8)
    for channel in range(3):
        colour: Field | np.float32 = np.float32(tint[channel])
        for weight, stain in canvas.stains:
            colour = colour + weight * (np.float32(stain[channel] * 1.05) - colour)
        level = shade * colour
        level += noise
        np.clip(level, 0, 255, out=level)
        picture[..., channel] = level
    return picture


def take(canvas: Canvas, rng: np.random.Generator, bank: Bank, photo: Photo) -> Image.Image:
    """One 256 x 256 picture of a painted surface."""
    soil(canvas, rng, bank)
    if photo.material == "deck" and rng.random() < 0.3:
        formwork(canvas, rng)
    if photo.material == "pipe" and rng.random() < 0.3:
        flood(canvas, rng, bank)
    light = room_light(rng, photo.material)
    light *= np.float32(rng.uniform(85, 165) / float((light * canvas.albedo).mean()))
    warmth, green_cast = rng.uniform(-0.12, 0.12), rng.uniform(-0.03, 0.03)
    white_balance = (1 + warmth, 1 + green_cast, 1 - warmth)
    red, green, blue = (float(t * b) for t, b in zip(photo.tint, white_balance, strict=True))
    noise = np.float32(rng.uniform(1, 6)) * crop(rng, bank.noise, IMAGE_PX)
    sun = photo.sun + rng.normal(0, 0.25)
    pixels = develop(canvas, light, noise, (red, green, blue), sun, relief=rng.uniform(0.16, 0.26))
    picture = Image.fromarray(pixels)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 0.9)))
    if photo.material == "pipe" and rng.random() < 0.7:
        burn_in(picture, rng)
    return picture


@cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default()


def burn_in(picture: Image.Image, rng: np.random.Generator) -> None:
    """The text that a pipe camera writes into its picture: run, pressure, distance, clock."""
    draw, ink = ImageDraw.Draw(picture), (235, 235, 225)
    corner = (8, 6) if rng.random() < 0.5 else (150, 6)
    draw.text(corner, f"ID:w{rng.integers(10, 99)}  Z:1X", fill=ink, font=_font())
    draw.text((8, 238), f"P:{rng.uniform(0, 2):.2f}PSI   D:{rng.uniform(0, 180):.2f}m", fill=ink, font=_font())

"""One painter per hidden sub-mode: each changes the relief, brightness and stains of a surface.

The predefined classes are what a trainer is told; the modes are what is really there, and differ in form, not
in shade: a classifier that never hears of them can still keep them apart. Lengths are pixels of the image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from damage_atlas.demo.textures import Bank, Field, Surface, crop, crop_all

IMAGE_PX = 256
RUST = (0.62, 0.33, 0.16)
SOOT = (0.40, 0.37, 0.33)
LEAF = (0.55, 0.78, 0.30)

PIXEL_Y, PIXEL_X = np.indices((IMAGE_PX, IMAGE_PX), dtype=np.float32)


@dataclass
class Canvas:
    """A surface under work: ``albedo`` around 1, ``height`` in pixels, stains as (weight 0..1, colour)."""

    albedo: Field
    height: Field
    stains: list[tuple[Field, tuple[float, float, float]]] = field(default_factory=list)


Painter = Callable[[Canvas, np.random.Generator, Bank, float], None]  # canvas, chance, bank, severity 0..1


def wander(rng: np.random.Generator, length_px: float, step_px: float, roughness: float) -> np.ndarray:
    """A crack's course along x from 0 to ``length_px``: points (P x 2) that stray in y."""
    n = int(length_px / step_px) + 2
    slope = np.empty(n)
    previous = 0.0
    for i, kick in enumerate(rng.standard_normal(n)):
        previous = 0.82 * previous + roughness * kick
        slope[i] = previous
    x = np.arange(n) * step_px
    y = np.cumsum(slope) * step_px
    return np.stack([x, y - y.mean()], axis=1)


def place(points_P2: np.ndarray, angle: float, centre: tuple[float, float]) -> np.ndarray:
    """Turns a course by ``angle`` (radians, clockwise on the screen) and moves its middle to ``centre``."""
    middle = points_P2 - [(points_P2[0, 0] + points_P2[-1, 0]) / 2, 0]
    c, s = math.cos(angle), math.sin(angle)
    placed: np.ndarray = middle @ np.array([[c, s], [-s, c]]) + centre
    return placed


def stroke(lines: list[tuple[np.ndarray, np.ndarray]], size: tuple[int, int] = (IMAGE_PX, IMAGE_PX)) -> Field:
    """Coverage 0..1 of polylines (points P x 2, width per segment), smoothed by drawing at twice the size."""
    sheet = Image.new("L", (2 * size[0], 2 * size[1]))
    draw = ImageDraw.Draw(sheet)
    for points_P2, width_P in lines:
        doubled = (2 * points_P2).tolist()
        for (x0, y0), (x1, y1), width in zip(doubled, doubled[1:], width_P.tolist(), strict=False):
            draw.line((x0, y0, x1, y1), fill=255, width=max(1, round(2 * width)))
    return np.asarray(sheet.reduce(2), dtype=np.float32) / np.float32(255)


def crack_lines(
    rng: np.random.Generator, angle: float, width_px: float, length_px: float, centre: tuple[float, float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """A crack with a width that breathes, and up to two short branches."""
    main = place(wander(rng, length_px, 5, 0.30), angle, centre)
    breathing = np.clip(1 + 0.35 * rng.standard_normal(len(main)), 0.45, 1.7)
    lines = [(main, width_px * breathing)]
    for _ in range(rng.integers(0, 3)):
        start = main[rng.integers(len(main) // 5, 4 * len(main) // 5)]
        side = angle + rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)
        twig = wander(rng, rng.uniform(20, 50), 5, 0.3)
        twig = place(twig, side, (0, 0))
        lines.append((twig - twig[0] + start, np.linspace(0.7 * width_px, 0.5, len(twig))))
    return lines


def cut(canvas: Canvas, depth: Field, darkness: float = 0.72, relief_px: float = 2.5) -> None:
    """Opens a dark gap where ``depth`` (0..1) is."""
    canvas.albedo *= 1 - darkness * depth
    canvas.height -= relief_px * depth


def blob(rng: np.random.Generator, bank: Bank, radius_px: float, centre: tuple[float, float]) -> Field:
    """Signed outline of an irregular patch: positive inside, about 1 per radius; ragged by a noise field."""
    distance = np.hypot(PIXEL_X - np.float32(centre[0]), PIXEL_Y - np.float32(centre[1]))
    outline: Field = 1 - distance / np.float32(radius_px)
    outline += np.float32(0.30) * crop(rng, bank.blobs[rng.integers(len(bank.blobs))], IMAGE_PX)
    outline += np.float32(0.05) * crop(rng, bank.grains[2], IMAGE_PX)
    return outline


def somewhere(rng: np.random.Generator, margin: float = 0.25) -> tuple[float, float]:
    """A point of the image (x, y), at least ``margin`` of its side away from the edges."""
    x, y = rng.uniform(margin, 1 - margin, 2) * IMAGE_PX
    return float(x), float(y)


def ramp(values: Field, sharpness: float) -> Field:
    """0 below zero, 1 above 1 / ``sharpness``."""
    result: Field = np.clip(values * np.float32(sharpness), 0, 1)
    return result


# ---- crack -------------------------------------------------------------------------------------------------


def _one_crack(canvas: Canvas, rng: np.random.Generator, angle: float, severity: float) -> None:
    lines = crack_lines(rng, angle, 2.2 + 2.4 * severity, 1.5 * IMAGE_PX, somewhere(rng))
    cut(canvas, stroke(lines), darkness=0.62 + 0.2 * severity)


def crack_longitudinal(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """One crack from top to bottom, along the traffic or the pipe's ring."""
    _one_crack(canvas, rng, math.pi / 2 + rng.normal(0, 0.16), severity)


def crack_transverse(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """One crack from side to side."""
    _one_crack(canvas, rng, rng.normal(0, 0.16), severity)


def crack_map(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """A net of cracks (alkali-silica reaction, drying): polygons that cover most of the image."""
    border = crop(rng, bank.nets[rng.integers(len(bank.nets))], IMAGE_PX)
    width = np.float32(2.6 + 1.8 * severity)
    net = np.clip(1.5 * (1 - border / width), 0, 1) * ramp(blob(rng, bank, 230, somewhere(rng)) - 0.05, 4)
    cut(canvas, net, darkness=0.72)


# ---- spalling ----------------------------------------------------------------------------------------------


def _rough_floor(canvas: Canvas, rng: np.random.Generator, bank: Bank, inside: Field, coarse: float) -> None:
    """Replaces the skin by broken concrete: stones that stick out of dark mortar."""
    bump = crop(rng, bank.stones[rng.integers(len(bank.stones))], IMAGE_PX)
    canvas.albedo += inside * (1 + np.float32(0.16) * bump - canvas.albedo)
    canvas.height += inside * (np.float32(coarse) * bump - canvas.height)


def spalling_scaling(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """The skin is worn off over wide, shallow patches: aggregate shows, with a thin edge (frost and salt)."""
    inside = ramp(blob(rng, bank, 100 + 60 * severity, somewhere(rng)), 14)
    _rough_floor(canvas, rng, bank, inside, coarse=1.7)
    canvas.height -= np.float32(2.0) * inside


def spalling_exposed_bar(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """The cover has burst off: a deep hole with a shadowed rim and ribbed, rusty bars across it."""
    centre = somewhere(rng, 0.35)
    outline = blob(rng, bank, 95 + 35 * severity, centre)
    inside = ramp(outline, 12)
    _rough_floor(canvas, rng, bank, inside, coarse=1.1)
    depth = ramp(outline, 2.2)
    canvas.albedo *= 1 - np.float32(0.38) * depth
    canvas.height -= 9 * inside + 7 * depth
    upright = rng.random() < 0.5
    along, across = (PIXEL_Y, PIXEL_X) if upright else (PIXEL_X, PIXEL_Y)
    middle = centre[0] if upright else centre[1]
    tilt = np.float32(rng.normal(0, 0.05))
    bars = int(rng.integers(1, 4))
    radius = np.float32(rng.uniform(6.0, 9.0))
    pitch = rng.uniform(36, 46)
    slanted = across + tilt * (along - 128)
    for i in range(bars):
        offset = slanted - np.float32(middle + (i - (bars - 1) / 2) * pitch)
        t = offset / radius
        bar = inside * (np.abs(t) < 1)
        round_ = np.sqrt(np.clip(1 - t * t, 0, 1))
        rib = np.clip(np.sin((along + offset * np.float32(0.6)) * np.float32(0.8)), 0, 1)
        canvas.height += bar * (16 + np.float32(1.3) * radius * round_ + np.float32(1.6) * rib - canvas.height)
        canvas.albedo += bar * (np.float32(0.45) + np.float32(0.55) * round_ - canvas.albedo)
        canvas.stains.append((bar * np.float32(0.85), RUST))


def spalling_popout(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """Small conical craters above swelling aggregate, each with a stone or a hole at the bottom."""
    for _ in range(int(rng.integers(7, 12 + round(5 * severity)))):
        radius = float(rng.uniform(9, 15 + 7 * severity))
        x, y = rng.uniform(0, IMAGE_PX, 2)
        window = _window(x, y, 1.4 * radius)
        dx, dy = PIXEL_X[window] - np.float32(x), PIXEL_Y[window] - np.float32(y)
        angle = np.arctan2(dy, dx)
        lobes = 1 + np.float32(0.14) * np.sin(angle * 3 + np.float32(rng.uniform(0, 6)))
        lobes += np.float32(0.08) * np.sin(angle * 7 + np.float32(rng.uniform(0, 6)))
        r = np.hypot(dx, dy * np.float32(rng.uniform(0.8, 1.2))) / (np.float32(radius) * lobes)
        bowl = np.clip((1 - r) * 5, 0, 1)
        canvas.height[window] -= bowl * (np.float32(3.0) + np.float32(0.45 * radius) * np.clip(1 - r, 0, 1))
        canvas.albedo[window] *= 1 - bowl * (np.float32(0.18) + np.float32(0.4) * (r < 0.4))


def _window(x: float, y: float, reach: float) -> tuple[slice, slice]:
    top, left = max(0, int(y - reach)), max(0, int(x - reach))
    return slice(top, max(top, int(y + reach) + 1)), slice(left, max(left, int(x + reach) + 1))


# ---- corrosion ---------------------------------------------------------------------------------------------


def corrosion_bloom(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """Surface rust: patches with soft edges whose wash runs down the face in streaks."""
    x, y = rng.uniform(0.25, 0.75) * IMAGE_PX, rng.uniform(0.10, 0.35) * IMAGE_PX
    source = ramp(blob(rng, bank, 60 + 40 * severity, (x, y)), 3)
    streaks = np.zeros_like(source)
    level = np.clip(source.max(axis=0) * (0.4 + 0.6 * rng.random(IMAGE_PX, dtype=np.float32)), 0, 1)
    level = np.convolve(level, np.full(5, 0.2, dtype=np.float32), mode="same").astype(np.float32)
    reach = (90 + 130 * rng.random(IMAGE_PX // 8 + 1)).repeat(8)[:IMAGE_PX].astype(np.float32)
    reach = np.convolve(reach, np.full(9, 1 / 9), mode="same").astype(np.float32)
    fall = np.clip(1 - (PIXEL_Y - np.float32(y)) / reach, 0, 1) * (np.float32(y) < PIXEL_Y)
    streaks = level * fall
    rust = np.maximum(source, np.float32(0.9) * streaks)
    rust *= np.float32(0.75) + np.float32(0.05) * crop(rng, bank.grains[0], IMAGE_PX)
    rust = np.clip(rust, 0, 0.95)
    canvas.albedo *= 1 - np.float32(0.35) * rust
    canvas.stains.append((rust, RUST))


def corrosion_pitting(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """Many small, deep, dark pits, each with a narrow brown rim."""
    spots, rim = (crop_all(rng, bank.grains[2:3], IMAGE_PX)[0], np.float32(0.75 - 0.35 * severity))
    dense = ramp(blob(rng, bank, 190, somewhere(rng)) + 0.15, 2)
    pits = ramp(spots - rim - np.float32(0.55), 2.5) * dense
    canvas.stains.append((np.float32(0.7) * ramp(spots - rim, 2) * dense, RUST))
    canvas.albedo *= 1 - np.float32(0.62) * pits
    canvas.height -= 4 * pits


def corrosion_flaking(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """Rust grown in layers: plates with sharp, stepped edges like contour lines, some still coated."""
    hills = blob(rng, bank, 170 + 60 * severity, somewhere(rng)) * np.float32(0.55)
    hills += np.float32(0.42) * crop(rng, bank.blobs[rng.integers(len(bank.blobs))], IMAGE_PX)
    terraces = np.clip(np.ceil(hills * 5), 0, 5)
    lost = np.minimum(terraces, 1)
    rough = crop(rng, bank.grains[0], IMAGE_PX)
    canvas.height -= np.float32(3.2) * terraces - lost * np.float32(0.35) * rough
    canvas.albedo *= 1 - lost * (np.float32(0.22) + np.float32(0.05) * rough)
    canvas.stains.append((lost * (np.float32(0.85) - np.float32(0.09) * terraces), RUST))


# ---- scratch -----------------------------------------------------------------------------------------------


def _groove(canvas: Canvas, mark: Field, bright: float, relief_px: float) -> None:
    canvas.albedo += mark * (np.float32(bright) - canvas.albedo)
    canvas.height -= np.float32(relief_px) * mark


def scratch_gouge(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """One deep furrow with a bright bottom and a raised lip."""
    angle, centre = rng.uniform(0, math.pi), somewhere(rng, 0.35)
    length, width = rng.uniform(130, 240), 5 + 6 * severity
    course = place(wander(rng, length, 12, 0.02), angle, centre)
    taper = np.clip(np.sin(np.linspace(0.05, math.pi - 0.05, len(course))) * 2.2, 0.15, 1)
    taper *= rng.uniform(0.7, 1.1, len(course))
    lip = stroke([(course, 1.9 * width * taper)])
    canvas.height += 2 * lip
    chatter = 1 - np.float32(0.14) * crop(rng, bank.grains[0], IMAGE_PX)
    _groove(canvas, stroke([(course, width * taper)]) * chatter, bright=1.65, relief_px=5)


def scratch_scrape(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """A dragged edge: a dozen or more fine, parallel, bright lines of different lengths."""
    angle, centre = rng.uniform(0, math.pi), somewhere(rng, 0.35)
    lines = []
    c, s = math.cos(angle), math.sin(angle)
    for _ in range(int(rng.integers(14, 20 + round(10 * severity)))):
        side, shift = rng.normal(0, 34), rng.normal(0, 18)
        course = place(
            wander(rng, rng.uniform(90, 220), 14, 0.012),
            angle + rng.normal(0, 0.025),
            (centre[0] - s * side + c * shift, centre[1] + c * side + s * shift),
        )
        lines.append((course, np.full(len(course), rng.uniform(0.8, 2.4))))
    _groove(canvas, stroke(lines), bright=1.65, relief_px=1.8)


# ---- joint -------------------------------------------------------------------------------------------------


def _across(rng: np.random.Generator) -> Field:
    """Signed distance (pixels) to a straight joint that crosses the image near its middle."""
    angle = rng.choice([0, math.pi / 2]) + rng.normal(0, 0.10)
    x, y = somewhere(rng, 0.35)
    distance: Field = (PIXEL_X - np.float32(x)) * np.float32(-math.sin(angle))
    distance += (PIXEL_Y - np.float32(y)) * np.float32(math.cos(angle))
    return distance


def joint_open(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """A straight, wide, dark gap between two crisp edges with chips broken out of them."""
    distance = np.abs(_across(rng))
    distance -= np.float32(1.6) * np.clip(crop(rng, bank.grains[1], IMAGE_PX) - 0.6, 0, 3)
    half = np.float32(6 + 8 * severity)
    gap = ramp(half - distance, 0.6)
    silt = np.float32(0.72) - np.float32(0.06) * crop(rng, bank.grains[0], IMAGE_PX)
    cut(canvas, gap * (silt + np.float32(0.15) * ramp(half - distance, 0.1)), darkness=1.0, relief_px=9)
    canvas.height -= np.float32(1.5) * ramp(half + 4 - distance, 0.25)  # the tooled, rounded arris


def joint_displaced(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """The two sides stand at different heights: a step with a wide shadow; textures do not meet."""
    distance = _across(rng)
    distance += np.float32(0.8) * crop(rng, bank.grains[1], IMAGE_PX)
    low = distance > 0
    other = np.roll(canvas.albedo, (61, 37), axis=(0, 1))
    canvas.albedo = np.where(low, np.float32(rng.uniform(0.80, 0.88)) * other, canvas.albedo)
    shadow = np.exp(-np.clip(distance, 0, None) / np.float32(16 + 22 * severity)) * low
    canvas.albedo *= 1 - np.float32(0.72) * shadow
    canvas.albedo += np.float32(0.35) * np.exp(-((distance + 3) ** 2) / np.float32(8))  # the lit edge
    canvas.height -= 5 * ramp(distance, 0.5)


# ---- sound -------------------------------------------------------------------------------------------------


def sound_bare(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """Nothing but the surface."""


def sound_tined(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """Grooves or ribs made on purpose: evenly spaced from edge to edge (tined deck, ribbed liner, tread)."""
    angle = rng.choice([0, math.pi / 2]) + rng.normal(0, 0.06)
    period = rng.uniform(17, 27)
    phase = (PIXEL_X * np.float32(math.cos(angle)) + PIXEL_Y * np.float32(math.sin(angle))) / np.float32(period)
    phase += np.float32(0.035) * crop(rng, bank.blobs[0], IMAGE_PX)
    wave = np.sin(phase * np.float32(2 * math.pi))
    groove = ramp(wave - np.float32(0.45) + np.float32(0.1) * crop(rng, bank.grains[0], IMAGE_PX), 2.5)
    canvas.albedo *= 1 - np.float32(0.24) * groove
    canvas.height -= 3 * groove


def sound_fittings(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """Rivet, bolt or anchor heads in a row or grid: domes on washers, all alike."""
    pitch, radius = rng.uniform(60, 84), rng.uniform(11, 15)
    rows, angle = (int(rng.integers(1, 4)), rng.choice([0, math.pi / 2]) + rng.normal(0, 0.06))
    c, s = math.cos(angle), math.sin(angle)
    cx, cy = somewhere(rng, 0.4)
    for i in range(-3, 4):
        for j in range(rows):
            u, v = i * pitch, (j - (rows - 1) / 2) * pitch
            x, y = cx + c * u - s * v, cy + s * u + c * v
            window = _window(x, y, 1.8 * radius)
            r = np.hypot(PIXEL_X[window] - np.float32(x), PIXEL_Y[window] - np.float32(y)) / np.float32(radius)
            canvas.height[window] += np.float32(1.2) * np.clip((1.5 - r) * 6, 0, 1)
            dome = np.sqrt(np.clip(1 - r * r, 0, 1))
            canvas.height[window] += np.float32(1.1 * radius) * dome
            canvas.albedo[window] *= 1 - np.float32(0.35) * np.exp(-(((r - 1.08) / np.float32(0.13)) ** 2))


# ---- what the third delivery brings ------------------------------------------------------------------------


def vegetation(canvas: Canvas, rng: np.random.Generator, bank: Bank, severity: float) -> None:
    """A plant that has rooted in the surface: some hundreds of leaves, densest in the middle, each shading others."""
    x0, y0 = somewhere(rng, 0.3)
    n = int(rng.integers(240, 300) + 200 * severity)
    away, around = np.abs(rng.normal(0, 75, n)), rng.uniform(0, 2 * math.pi, n)
    centre_N2 = np.stack([x0 + away * np.cos(around), y0 + away * np.sin(around)], axis=1)
    turn, length, width = rng.uniform(0, math.pi, n), rng.uniform(7, 13, n), rng.uniform(3, 5.5, n)
    shade = rng.uniform(0.45, 1.55, n)
    rim = np.linspace(0, 2 * math.pi, 12, endpoint=False)
    along, across = length[:, None] * np.cos(rim), width[:, None] * np.sin(rim)
    c, s = np.cos(turn)[:, None], np.sin(turn)[:, None]
    outline_NP2 = np.stack([c * along - s * across, s * along + c * across], axis=2) + centre_N2[:, None]
    sheet = Image.new("L", (2 * IMAGE_PX, 2 * IMAGE_PX))  # 0 is no leaf, else its shade; at twice the size, as `stroke`
    draw = ImageDraw.Draw(sheet)
    for leaf, level in zip((2 * outline_NP2).tolist(), (130 * shade).tolist(), strict=True):
        draw.polygon([tuple(point) for point in leaf], fill=round(level))
    cover = np.asarray(sheet.point(lambda level: 255 if level else 0).reduce(2), dtype=np.float32) / np.float32(255)
    light = np.asarray(sheet.reduce(2), dtype=np.float32) / np.float32(130)
    canvas.albedo += cover * (np.float32(0.55) * light - canvas.albedo)
    canvas.height += cover * (2 * light - canvas.height)
    canvas.stains.append((np.float32(0.92) * cover, LEAF))


MODES: dict[str, dict[str, Painter]] = {
    "crack": {"longitudinal": crack_longitudinal, "transverse": crack_transverse, "map": crack_map},
    "spalling": {"scaling": spalling_scaling, "exposed_bar": spalling_exposed_bar, "popout": spalling_popout},
    "corrosion": {"bloom": corrosion_bloom, "pitting": corrosion_pitting, "flaking": corrosion_flaking},
    "scratch": {"gouge": scratch_gouge, "scrape": scratch_scrape},
    "joint": {"open": joint_open, "displaced": joint_displaced},
    "sound": {"bare": sound_bare, "tined": sound_tined, "fittings": sound_fittings},
}
NEW_KIND = "vegetation"


def start_canvas(rng: np.random.Generator, surface: Surface) -> Canvas:
    """A fresh, random piece of a surface."""
    albedo, height = crop_all(rng, (surface.albedo, surface.height), IMAGE_PX)
    return Canvas(albedo.copy(), height.copy())

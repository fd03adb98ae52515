"""From a planned shot to a file: close-ups, 20-megapixel photos, EXIF.

`shoot` works from the shot alone: which process calls it, and in which order, changes no byte.
"""

import io
import math
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFilter

from damage_atlas.demo.camera import Photo, develop, take
from damage_atlas.demo.damage import MODES, NEW_KIND, Canvas, crack_lines, start_canvas, vegetation
from damage_atlas.demo.plan import STRUCTURE, Shot
from damage_atlas.demo.textures import SCALES, Bank, Surface, make_bank, make_surface

STRIP_PX = 192  # rows of a large photo developed at a time: 5,472 x 192 float32 planes stay small
WIDE_PX = 1024  # period of a large photo's texture: four tiles of 256 pixels
BOX_STEP = 8  # crack points per bounding box: about 40 pixels, so that a box touches few tiles the crack does not
CAMERAS = {"DJI_": ("DJI", "M3E"), "RUN_": ("IBAK", "Orion 3"), "SCAN_": ("Basler", "raL8192")}


@lru_cache(maxsize=1)
def bank_of(seed: int) -> Bank:
    """The bank of an archive, made at its first use in a process."""
    return make_bank(seed)


@lru_cache(maxsize=1)
def wide_deck(seed: int, variant: int) -> Surface:
    """The deck of the bank's ``variant``, large enough that a photo may repeat it."""
    return make_surface(np.random.default_rng([seed, STRUCTURE]), "deck", WIDE_PX, SCALES[variant])


def structure_of(shot: Shot) -> Photo:
    """The look that all shots of one group share."""
    rng = np.random.default_rng([shot.rng_key[0], STRUCTURE, zlib.crc32(shot.group.encode())])
    return Photo.of(rng, shot.material, len(SCALES))


def close_up(shot: Shot) -> tuple[Image.Image, float]:
    """The picture of a shot, and how severe its damage is (0 to 1)."""
    bank, photo = bank_of(shot.rng_key[0]), structure_of(shot)
    rng = np.random.default_rng([*shot.rng_key, 1])
    canvas = start_canvas(rng, bank.surfaces[shot.material][photo.variant])
    severity = float(rng.random())  # drawn in any case: what is drawn after it must not depend on the setting
    if shot.severity is not None:
        severity = shot.severity
    for name, mode in reversed(shot.layers):  # a crack comes last: it runs on through a spall
        painter = vegetation if name == NEW_KIND else MODES[name][mode]
        painter(canvas, rng, bank, severity)
    return take(canvas, rng, bank, photo), severity


def quality_of(shot: Shot) -> int:
    """The JPEG quality of a shot's camera."""
    return int(np.random.default_rng([*shot.rng_key, 2]).integers(68, 95))


def write_close_up(root: Path, shot: Shot) -> dict[str, str]:
    """Writes the JPEG of a shot under ``root`` and returns its row of the truth."""
    picture, severity = close_up(shot)
    _save(root / shot.file, picture, quality_of(shot), exif_of(shot))
    return truth_row(shot, severity)


def write_large(root: Path, shot: Shot, size: tuple[int, int]) -> dict[str, str]:
    """Writes a photo of ``size`` (width, height) pixels; its truth lists boxes along the crack, in pixels.

    The deck is the one of the close-ups at their scale, so that a 256-pixel tile looks like one of them.
    """
    width, height = size
    seed = shot.rng_key[0]
    rng = np.random.default_rng([*shot.rng_key, 1])
    photo = structure_of(shot)
    surface, texture_px = wide_deck(seed, photo.variant), WIDE_PX

    angle = (math.pi / 2 if shot.mode == "longitudinal" else 0) + rng.normal(0, 0.15)
    reach = min(rng.uniform(800, 1300), 0.5 * min(size))
    centre = (rng.uniform(0.3, 0.7) * width, rng.uniform(0.3, 0.7) * height)
    lines = crack_lines(rng, angle, 3.0, reach, centre)
    crack = Image.new("L", size)
    pen = ImageDraw.Draw(crack)
    for points_P2, width_P in lines:
        for start, end, w in zip(points_P2, points_P2[1:], width_P, strict=False):
            pen.line((*start, *end), fill=255, width=max(1, round(w)))
    crack = crack.filter(ImageFilter.BoxBlur(0.4))  # a lens does not draw stairs

    warmth = rng.uniform(-0.08, 0.08)
    red, green, blue = photo.tint
    gain, slope = rng.uniform(115, 145), rng.uniform(-0.2, 0.2)
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    columns = np.arange(width) % texture_px
    picture = Image.new("RGB", size)
    for top in range(0, height, STRIP_PX):
        above = min(top, 1)  # one row more, for the shade of the strip's first row
        y = np.arange(top - above, min(top + STRIP_PX, height))
        albedo, relief = (plane[y % texture_px][:, columns] for plane in (surface.albedo, surface.height))
        down = (2 * y[:, None] / height - 1).astype(np.float32)
        light = np.float32(gain) * (1 + np.float32(slope) * across - np.float32(0.12) * (across**2 + down**2))
        canvas = Canvas(albedo, relief)
        box = (0, int(y[0]), width, int(y[-1]) + 1)
        depth = np.asarray(crack.crop(box), dtype=np.float32) / np.float32(255)
        canvas.albedo *= 1 - np.float32(0.72) * depth
        canvas.height -= np.float32(2.5) * depth
        grain = 3 * rng.standard_normal((len(y), width), dtype=np.float32)
        tint = (red * (1 + warmth), green, blue * (1 - warmth))
        pixels = develop(canvas, light, grain, tint, photo.sun, relief=0.2)
        picture.paste(Image.fromarray(pixels[above:]), (0, top))
    _save(root / shot.file, picture, 85, exif_of(shot))
    row = truth_row(shot, severity=0.5)
    row["boxes"] = ";".join(_boxes(lines, size))
    return row


def _boxes(lines: list[tuple[np.ndarray, np.ndarray]], size: tuple[int, int]) -> list[str]:
    """Bounding boxes "left top right bottom" of short pieces of the crack, clipped to the photo."""
    boxes = []
    for points_P2, _ in lines:
        for start in range(0, len(points_P2) - 1, BOX_STEP):
            piece = points_P2[start : start + BOX_STEP + 1]
            low = np.clip(np.floor(piece.min(axis=0)), 0, size)
            high = np.clip(np.ceil(piece.max(axis=0)) + 1, 0, size)
            if (high > low).all():
                boxes.append(" ".join(str(int(v)) for v in (*low, *high)))
    return boxes


def truth_row(shot: Shot, severity: float | None = None) -> dict[str, str]:
    """What is known about a shot's file; columns as in `make.TRUTH_COLUMNS`."""
    return {
        "file": shot.file,
        "class": shot.label,
        "mode": shot.mode,
        "severity": "" if severity is None else f"{severity:.3f}",
        "background": shot.material,
        "planted": shot.planted,
        "status": "ok",
        "reason": "",
        "delivery": shot.delivery,
        "asset": shot.asset.name if shot.asset else "",
        "group": shot.group,
        "boxes": "",
    }


def exif_of(shot: Shot) -> Image.Exif:
    """Camera, asset, inspection, time and place as a camera writes them; empty for training images."""
    exif = Image.Exif()
    if shot.asset is None or shot.captured_at is None:
        return exif
    make, model = CAMERAS[shot.asset.prefix]
    exif[ExifTags.Base.Make] = make
    exif[ExifTags.Base.Model] = model
    exif[ExifTags.Base.ImageDescription] = f"asset={shot.asset.name}; inspection={shot.delivery}"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = f"{shot.captured_at:%Y:%m:%d %H:%M:%S}"
    dx, dy = np.random.default_rng([*shot.rng_key, 3]).normal(0, 2e-4, 2)  # some 20 metres along the asset
    latitude, longitude = shot.asset.latitude + dy, shot.asset.longitude + dx
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitudeRef] = "N" if latitude >= 0 else "S"
    gps[ExifTags.GPS.GPSLatitude] = _degrees(abs(latitude))
    gps[ExifTags.GPS.GPSLongitudeRef] = "E" if longitude >= 0 else "W"
    gps[ExifTags.GPS.GPSLongitude] = _degrees(abs(longitude))
    return exif


def _degrees(value: float) -> tuple[float, float, float]:
    minutes, degrees = math.modf(value)
    seconds, whole_minutes = math.modf(minutes * 60)
    return degrees, whole_minutes, round(seconds * 60, 2)


def jpeg_bytes(picture: Image.Image, quality: int, exif: Image.Exif) -> bytes:
    """``picture`` as JPEG, with ``exif`` where there is any."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, exif=exif.tobytes() if len(exif) else b"")
    return buffer.getvalue()


def _save(path: Path, picture: Image.Image, quality: int, exif: Image.Exif) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg_bytes(picture, quality, exif))

"""Pictures: decode, check, cut, preprocess. One preprocessing for train, embed and explain.

Colour profiles are not applied, transparency is laid over white, the first frame or page counts, and grey
values of more than 8 bits are scaled to 8, never clipped. Nothing here repairs a picture: what is damaged
raises ``ImageError``.
"""

from __future__ import annotations

import errno
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

# Importing a plugin registers its format; left to itself Pillow does that late, and threads race for it.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    ExifTags,
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from damage_atlas.contracts import QUARANTINE_REASONS
from damage_atlas.errors import InputError, ObjectNotFoundError, StoreError
from damage_atlas.spec import CatalogSpec
from damage_atlas.store.objects import Store, sha256

TILE_COLUMNS: Final = ("tile_x", "tile_y", "tile_width", "tile_height")  # of the observations
FORMATS: Final = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")

Pixels = npt.NDArray[np.uint8]  # H x W x 3, RGB, upright

# Pillow's own limit is one number for the whole process and would refuse stitched photos that `Limits`
# allows. _opened() checks every header itself, before a pixel is allocated.
Image.MAX_IMAGE_PIXELS = None
# Damage in metadata is Pillow's to mention and ours to ignore; damage in pixels raises.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# What Pillow's decoders raise over damaged bytes. MemoryError is not among them: it speaks of the machine.
_DECODER_FAULTS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
)

_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"II*\0", b"MM\0*", b"RIFF", b"BM", b"GIF8")
_ZEROS_OF_A_LOST_TAIL: Final = 64  # bytes; shorter runs of zeros are padding

_UPRIGHT: Final = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """A file is not a usable picture.

    Attributes:
        reason: a key of ``contracts.QUARANTINE_REASONS``.
        detail: for people: what exactly was wrong.
    """

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in QUARANTINE_REASONS, reason
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Limits:
    """Which pictures are refused from their header alone."""

    min_side: int = 8  # pixels
    max_pixels: int = 300_000_000

    @classmethod
    def of(cls, spec: CatalogSpec) -> Limits:
        """The limits that the settings name."""
        return cls(spec.min_side, spec.max_pixels)


@dataclass(frozen=True)
class Tile:
    """A box in the pixels of an upright photo."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Tile | None:
        """The tile of a row of the observations; None for a whole image."""
        return None if row["tile_x"] is None else cls(*(row[name] for name in TILE_COLUMNS))

    def cut(self, pixels: Pixels) -> Pixels:
        """This box of ``pixels``, as a view."""
        return pixels[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class PictureFacts:
    """What a file says about its picture."""

    width: int  # of the upright picture, pixels
    height: int
    format: str
    captured_at: datetime | None  # UTC; EXIF times without an offset are taken for UTC
    latitude: float | None  # degrees, WGS 84
    longitude: float | None


def decode(data: bytes, limits: Limits = Limits()) -> Pixels:
    """Decode a picture file.

    Returns:
        H x W x 3 uint8, RGB, upright; read-only.

    Raises:
        ImageError: the bytes are not a complete picture within the limits.
    """
    with _opened(data, limits) as image:
        return np.asarray(_upright(image, _rgb(image)))


def inspect(data: bytes, limits: Limits = Limits()) -> PictureFacts:
    """Decode the whole picture to see that it is sound, and read its metadata; errors as in ``decode``."""
    with _opened(data, limits) as image:
        exif = _exif(image)
        width, height = image.size
        if exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
            width, height = height, width
        latitude, longitude = _position(exif)
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        return PictureFacts(width, height, kind, _captured_at(exif), latitude, longitude)


def preprocess(pixels: Pixels, size: int = 160) -> Pixels:
    """Resize H x W x 3 pixels to the network's input, size x size x 3, with antialiasing.

    The aspect ratio is given up, as in the paper: nothing of the picture is cut off.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    # Averages whole blocks first where the picture is much larger; bilinear on top is antialiased in Pillow.
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0))


def encode_jpeg(pixels: Pixels, quality: int = 85) -> bytes:
    """H x W x 3 pixels as a JPEG file."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "JPEG", quality=quality, optimize=True)
    return sink.getvalue()


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """H x W x 3 (or H x W, or H x W x 4) pixels as a PNG file."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "PNG")
    return sink.getvalue()


class PhotoReader:
    """Reads photos and tiles of them; the last photo stays decoded, since its tiles come one after the other.

    One reader belongs to one thread.

    Args:
        images_root: a folder or an ``s3://`` prefix.
    """

    def __init__(self, images_root: str, limits: Limits = Limits()) -> None:
        self.limits = limits
        self._store = Store(images_root)
        self._last: tuple[str, str | None] | None = None
        self._pixels: Pixels | None = None

    def read(self, file: str, sha256: str | None = None, tile: Tile | None = None) -> Pixels:
        """One photo, or one tile of it, H x W x 3.

        Args:
            file: as in the observations: relative to the root, escaped by ``escape_name``.
            sha256: what the file's bytes must hash to; not checked when None.

        Raises:
            ImageError: vanished, changed, or not a sound picture any more.
            StoreError: the store did not answer; says nothing about the picture.
        """
        if self._last != (file, sha256) or self._pixels is None:
            self._last = self._pixels = None
            self._pixels = decode(read_file(self._store, file, sha256), self.limits)
            self._last = (file, sha256)
        if tile is None:
            return self._pixels
        cut = tile.cut(self._pixels)
        if cut.shape[:2] != (tile.height, tile.width):
            raise ImageError("changed", f"tile {tile} does not lie inside the photo")
        return cut


def read_file(store: Store, file: str, expected_sha256: str | None = None) -> bytes:
    """The bytes of a photo; errors as in ``PhotoReader.read``."""
    try:
        data = store.read(unescape_name(file))
    except ObjectNotFoundError as error:
        _check_root(store)
        raise ImageError("vanished", "nothing has this name any more") from error
    except InputError as error:
        raise ImageError("unreadable", "the name is not a path below the image folder") from error
    except StoreError as error:
        # A file that this user may not open is the file's fault; a disk or a network that fails is not.
        cause = getattr(error.__cause__, "errno", None)
        if cause in (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP):
            raise ImageError("unreadable", os.strerror(cause)) from error
        raise
    if expected_sha256 is not None and sha256(data) != expected_sha256:
        raise ImageError("changed", "the bytes are not those that were catalogued")
    return data


def escape_name(name: str) -> str:
    r"""A file name as text: ``\`` becomes ``\\``, a byte that is not UTF-8 ``\xNN``; all else stays."""
    return re.sub("[\udc80-\udcff]", lambda m: f"\\x{ord(m[0]) - 0xDC00:02x}", name.replace("\\", "\\\\"))


def unescape_name(name: str) -> str:
    """The inverse of ``escape_name``: what the operating system calls the file."""
    return re.sub(r"\\(\\|x([0-9a-f]{2}))", lambda m: chr(0xDC00 + int(m[2], 16)) if m[2] else "\\", name)


def file_uri(store: Store, file: str) -> str:
    """Where a photo lies; percent-encoded for ``file://``, so that a browser opens any name."""
    if store.folder is None:
        return store.uri(unescape_name(file))
    return f"{store.root}/{quote(os.fsencode(unescape_name(file)))}"


def _check_root(store: Store) -> None:
    """Raise StoreError when not one photo but all are out of reach: unmounted, or the bucket is gone."""
    if store.folder is not None and not store.folder.is_dir():
        raise StoreError(f"{store.folder} is not there any more. Mount it and try again.")
    if store.folder is None:
        next(store.list(), None)


@contextmanager
def _opened(data: bytes, limits: Limits) -> Iterator[Image.Image]:
    """The picture, completely decoded; whatever fails inside becomes an ImageError."""
    if not data:
        raise ImageError("empty", "0 bytes")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_webp(data, limits)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, limits)
            if image.mode == "LAB":
                raise ImageError("not_an_image", "CIELAB colours are not read; save the picture as RGB")
            _check_tail(image, data)
            image.load()
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except _DECODER_FAULTS as error:
        text = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()[:200]
        cut_off = isinstance(error, EOFError) or "truncated" in text.lower() or "end of" in text.lower()
        raise ImageError("truncated" if cut_off else "corrupt", text or type(error).__name__) from error


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageError("bomb", f"{width} x {height} pixels, the limit is {limits.max_pixels:,} in all")
    if min(width, height) < limits.min_side:
        raise ImageError("too_small", f"{width} x {height} pixels, the limit is {limits.min_side} a side")


def _check_webp(data: bytes, limits: Limits) -> None:
    """Size and length from a WebP header: Pillow allocates the canvas before it tells the size."""
    if int.from_bytes(data[4:8], "little") + 8 > len(data) or len(data) < 30:
        raise ImageError("truncated", "the file is shorter than its header says")
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X":
        _check_size((1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:], "little")), limits)
    elif chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        _check_size((1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)), limits)
    elif chunk == b"VP8 ":
        bits = int.from_bytes(body[6:], "little")
        _check_size((bits & 0x3FFF, bits >> 16 & 0x3FFF), limits)


def _check_tail(image: Image.Image, data: bytes) -> None:
    """Find lost tails that decoders fill with grey instead of complaining."""
    if image.format in ("JPEG", "MPO"):
        # A copy onto preallocated space that was cut short: zeros, and no end marker after the last scan.
        zeros = len(data) - len(data.rstrip(b"\0"))
        if zeros >= _ZEROS_OF_A_LOST_TAIL and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
            raise ImageError("truncated", f"the last {zeros:,} bytes are zeros")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        for offsets, sizes in ((273, 279), (324, 325)):  # strips, tiles
            pairs = zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=False)
            if any(offset + size > len(data) for offset, size in pairs):
                raise ImageError("truncated", "the file ends before its last strip")


def _unidentified(data: bytes) -> ImageError:
    if not data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] != b"WEBP"):
        return ImageError("not_an_image", f"starts with {data[:8]!r}; read are {', '.join(FORMATS)}")
    if not any(pixels in data for pixels in (b"\xff\xda", b"IDAT")):
        return ImageError("truncated", "the file ends inside its header")
    return ImageError("corrupt", "the header is damaged")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Pixels:
    """Greyscale of more than 8 bits, scaled: 16 bits by their full range, others by the values that occur."""
    values = np.asarray(image).astype(np.float64)
    values[~np.isfinite(values)] = 0
    if image.mode == "F":
        low, high = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (values.min(), values.max())
    elif values.min() >= 0 and values.max() <= 0xFFFF:
        bits = image.tag_v2.get(258, (16,))[0] if isinstance(image, TiffImagePlugin.TiffImageFile) else 16
        low, high = 0.0, float((1 << min(bits, 16)) - 1)
    else:
        low, high = values.min(), values.max()
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).clip(0, 255).astype(np.uint8)


def _upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    # Pillow turns TIFFs itself and then drops the tag.
    method = _UPRIGHT.get(_exif(image).get(ExifTags.Base.Orientation, 1))
    return rgb if method is None else rgb.transpose(method)


def _exif(image: Image.Image) -> dict[int, Any]:
    """EXIF tags of the picture and of its Exif part, GPS below GPSInfo; empty where they are damaged."""
    try:
        tags = image.getexif()
        if not tags:
            return {}
        gps = dict(tags.get_ifd(ExifTags.IFD.GPSInfo))
        merged = dict(tags) | dict(tags.get_ifd(ExifTags.IFD.Exif)) | {int(ExifTags.IFD.GPSInfo): gps}
        orientation = merged.get(ExifTags.Base.Orientation)
        return merged if isinstance(orientation, int) else {k: v for k, v in merged.items() if k != 0x0112}
    except _DECODER_FAULTS:
        return {}  # metadata is a guest in the file: its damage never costs the picture


def _captured_at(exif: dict[int, Any]) -> datetime | None:
    try:
        text = str(exif[ExifTags.Base.DateTimeOriginal]).strip("\0 ")
        moment = datetime.strptime(text, "%Y:%m:%d %H:%M:%S")
        fraction = re.match(r"\d{1,6}", str(exif.get(ExifTags.Base.SubsecTimeOriginal, "")))
        moment += timedelta(microseconds=int(fraction[0].ljust(6, "0")) if fraction else 0)
        offset = re.match(r"([+-])(\d\d):(\d\d)", str(exif.get(ExifTags.Base.OffsetTimeOriginal, "")))
        if offset is None:
            return moment.replace(tzinfo=UTC)
        shift = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        zone = timezone(shift if offset[1] == "+" else -shift)
        return moment.replace(tzinfo=zone).astimezone(UTC)
    except (KeyError, ValueError, OverflowError):
        return None


def _position(exif: dict[int, Any]) -> tuple[float | None, float | None]:
    gps = exif.get(ExifTags.IFD.GPSInfo, {})
    try:
        latitude = _degrees(gps[2]) * (-1 if str(gps[1]).startswith("S") else 1)
        longitude = _degrees(gps[4]) * (-1 if str(gps[3]).startswith("W") else 1)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None, None
    # NaN fails every comparison; 0, 0 is what a receiver without a fix writes.
    if not (abs(latitude) <= 90 and abs(longitude) <= 180) or (latitude, longitude) == (0, 0):
        return None, None
    return latitude, longitude


def _degrees(values: Any) -> float:
    degrees, minutes, seconds = (float(value) for value in values)
    return degrees + minutes / 60 + seconds / 3600

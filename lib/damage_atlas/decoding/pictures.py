"""Untrusted bytes become pixels, or an ``ImageError`` that says why not.

Colour profiles are not applied, transparency is laid over white, the first frame or page counts, and grey
values of more than 8 bits are scaled to 8, never clipped. Nothing here repairs a picture: what is damaged
raises ``ImageError``.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray

# Importing a plugin registers its format; left to itself Pillow does that late, and threads race for it.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from damage_atlas.decoding.facts import DEFAULT_LIMITS, Limits, PictureFacts, Pixels
from damage_atlas.decoding.faults import DECODER_FAULTS, ImageError
from damage_atlas.decoding.metadata import captured_at, exif_of, orientation, position

FORMATS: Final = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")

# Pillow's own limit is one number for the whole process and would refuse stitched photos that `Limits`
# allows. _opened() checks every header itself, before a pixel is allocated.
Image.MAX_IMAGE_PIXELS = None
# Damage in metadata is Pillow's to mention and ours to ignore; damage in pixels raises.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"II*\0", b"MM\0*", b"RIFF", b"BM", b"GIF8")
_TIFF_COMPRESSION: Final = 259
_LONGEST_SIDE: Final = 200_000  # pixels: a line of millions would be cut into as many tiles as files in an archive
_VALUES_AT_ONCE: Final = 1 << 20  # of more than 8 bits
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


def decode(data: bytes, limits: Limits = DEFAULT_LIMITS, into: memoryview | None = None) -> Pixels:
    """Decode a picture file.

    Args:
        into: writable memory that the pixels may lie in afterwards, where they fit and the decoder can.

    Returns:
        H x W x 3 uint8, RGB, upright; not to be written to.

    Raises:
        ImageError: the bytes are not a complete picture within the limits.
    """
    with _opened(data, limits, "RGB", into) as (image, turbo):
        if turbo is not None:
            return _upright(image, turbo)
        return _upright(image, np.asarray(_rgb(image)))


def inspect(data: bytes, limits: Limits = DEFAULT_LIMITS) -> PictureFacts:
    """Decode the whole picture to see that it is sound, and read its metadata; errors as in ``decode``."""
    with _opened(data, limits, "GRAY") as (image, _):
        exif = exif_of(image)
        width, height = image.size
        if orientation(image) in (5, 6, 7, 8):
            width, height = height, width
        latitude, longitude = position(exif)
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        return PictureFacts(width, height, kind, captured_at(exif), latitude, longitude)


@contextmanager
def _opened(
    data: bytes, limits: Limits, colours: Literal["RGB", "GRAY"], into: memoryview | None = None
) -> Iterator[tuple[Image.Image, Pixels | None]]:
    """The picture, completely decoded, and its pixels where libjpeg-turbo has decoded them.

    Whatever fails inside becomes an ImageError.
    """
    if not data:
        raise ImageError("empty", "0 bytes")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_webp(data, limits)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.size, limits)
            if image.mode == "LAB":
                raise ImageError("not_an_image", "CIELAB colours are not read; save the picture as RGB")
            _check_tail(image, data)
            turbo = _turbo(image, data, colours, into)
            if turbo is None:
                image.load()
            yield image, turbo
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except DECODER_FAULTS as error:
        text = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()[:200]
        cut_off = isinstance(error, EOFError) or "truncated" in text.lower() or "end of" in text.lower()
        raise ImageError("truncated" if cut_off else "corrupt", text or type(error).__name__) from error


def _turbo(image: Image.Image, data: bytes, colours: Literal["RGB", "GRAY"], into: memoryview | None) -> Pixels | None:
    """Pixels of a plain JPEG by libjpeg-turbo at twice Pillow's speed, the same to the last bit; else None.

    None as well where it complains: whether the damage is worth refusing is Pillow's to say.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        fits = into is not None and image.width * image.height * len("RGB") <= into.nbytes
        return simplejpeg.decode_jpeg(data, colours, strict=True, buffer=into if fits else None)
    except ValueError:
        return None


def check_size(size: tuple[int, int], limits: Limits) -> None:
    """Refuse a picture by its width and height; raises ImageError."""
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageError("bomb", f"{width} x {height} pixels, the limit is {limits.max_pixels:,} in all")
    if max(width, height) > _LONGEST_SIDE:
        raise ImageError("bomb", f"{width} x {height} pixels, the limit is {_LONGEST_SIDE:,} a side")
    if min(width, height) < limits.min_side:
        raise ImageError("too_small", f"{width} x {height} pixels, the limit is {limits.min_side} a side")


def _check_webp(data: bytes, limits: Limits) -> None:
    """Size and length from a WebP header: Pillow allocates the canvas before it tells the size."""
    if int.from_bytes(data[4:8], "little") + 8 > len(data) or len(data) < 30:
        raise ImageError("truncated", "the file is shorter than its header says")
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X":
        check_size((1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:], "little")), limits)
    elif chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        check_size((1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)), limits)
    elif chunk == b"VP8 ":
        bits = int.from_bytes(body[6:], "little")
        check_size((bits & 0x3FFF, bits >> 16 & 0x3FFF), limits)


def _check_tail(image: Image.Image, data: bytes) -> None:
    """Find lost tails that decoders fill with grey instead of complaining."""
    if image.format in ("JPEG", "MPO"):
        # A copy onto preallocated space that was cut short: zeros, and no end marker after the last scan.
        zeros = len(data) - len(data.rstrip(b"\0"))
        if zeros >= _ZEROS_OF_A_LOST_TAIL and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
            raise ImageError("truncated", f"the last {zeros:,} bytes are zeros")
    # Of an uncompressed TIFF Pillow reads what the size asks for, and complains; how long its strips claim to be says
    # nothing.
    if isinstance(image, TiffImagePlugin.TiffImageFile) and (tags := image.tag_v2).get(_TIFF_COMPRESSION, 1) != 1:
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
    values = np.asarray(image)
    # Some rows at a time: in float64 a large picture would take many times its size.
    height = max(_VALUES_AT_ONCE // max(values.shape[1], 1), 1)
    strips = [slice(top, top + height) for top in range(0, values.shape[0], height)]
    extremes = [(part.min(), part.max()) for part in (_finite(values[strip]) for strip in strips)]
    low, high = float(min(least for least, _ in extremes)), float(max(most for _, most in extremes))
    if image.mode == "F":
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    elif low >= 0 and high <= 0xFFFF:
        bits = image.tag_v2.get(258, (16,))[0] if isinstance(image, TiffImagePlugin.TiffImageFile) else 16
        low, high = 0.0, float((1 << min(bits, 16)) - 1)
    scaled = np.empty(values.shape, np.uint8)
    for strip in strips:
        scaled[strip] = np.rint((_finite(values[strip]) - low) * (255 / max(high - low, 1e-12))).clip(0, 255)
    return scaled


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64), copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _upright(image: Image.Image, pixels: Pixels) -> Pixels:
    # Pillow turns TIFFs itself and then drops the tag.
    method = _UPRIGHT.get(orientation(image))
    if method is None:
        return pixels
    return np.asarray(Image.fromarray(pixels).transpose(method))

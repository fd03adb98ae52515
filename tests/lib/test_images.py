"""Pictures of every kind a camera, a scanner or an accident makes."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from damage_atlas import images
from damage_atlas.decoding import pictures
from damage_atlas.errors import StoreError
from damage_atlas.images import ImageError, Limits, PhotoReader, Source, Tile, decode, inspect, preprocess

# Pillow warns about damaged metadata that it then ignores, as do we.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

HEIGHT, WIDTH = 48, 64
ANY_SIZE = Limits()


def gradient() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture without symmetry, so that a wrong turn shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 255 // (WIDTH - 1), y * 255 // (HEIGHT - 1), np.full_like(x, 40)], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def picture(kind: str = "PNG", **options: Any) -> bytes:
    return encoded(Image.fromarray(gradient()), kind, **options)


def rolled(columns: int) -> bytes:
    """Another picture for each number."""
    return encoded(Image.fromarray(np.roll(gradient(), columns, axis=1)), "PNG")


def noise() -> Image.Image:
    """A picture whose file is nearly all pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def reason_of(data: bytes, limits: Limits = ANY_SIZE) -> str:
    """The reason for which both ways of opening refuse ``data``."""
    with pytest.raises(ImageError) as from_decode:
        decode(data, limits)
    with pytest.raises(ImageError) as from_inspect:
        inspect(data, limits)
    assert from_decode.value.reason == from_inspect.value.reason
    assert "\n" not in from_decode.value.detail
    return from_decode.value.reason


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 12),
        ("JPEG", {"quality": 95, "subsampling": 0}, 4),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 4),
        ("GIF", {}, 24),
    ],
)
def test_formats_are_read(kind: str, options: dict[str, Any], tolerance: int) -> None:
    data = picture(kind, **options)
    pixels = decode(data)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - gradient()).mean() <= tolerance
    facts = inspect(data)
    assert (facts.width, facts.height, facts.format) == (WIDTH, HEIGHT, kind)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = gradient()
    # What a camera stores when it is held so that the viewer must undo it.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    lossless |= {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif.tobytes(), **lossless)
    assert np.abs(decode(data).astype(int) - upright).max() <= (8 if kind == "JPEG" else 0)
    facts = inspect(data)
    assert (facts.width, facts.height) == (WIDTH, HEIGHT)


def test_an_orientation_of_nonsense_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    assert np.array_equal(decode(picture("PNG", exif=exif.tobytes())), gradient())


def test_cmyk_and_inverted_cmyk() -> None:
    cmyk = Image.fromarray(gradient()).convert("CMYK")
    # Pillow writes the Adobe marker, and with it inverted inks, into a JPEG; a TIFF holds them as they are.
    for data, tolerance in ((encoded(cmyk, "JPEG", quality=95), 6), (encoded(cmyk, "TIFF"), 0)):
        assert np.abs(decode(data).astype(int) - gradient()).mean() <= tolerance
    plain = encoded(cmyk, "JPEG", quality=95).replace(b"Adobe", b"Xdobe")
    assert np.abs(decode(plain).astype(int) - (255 - gradient().astype(int))).mean() > 20


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(ramp), kind))
    assert np.abs(pixels[..., 0].astype(int) - ramp / 257).max() <= 0.5
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize("values", ["signed", "float"])
def test_other_values_are_scaled_alike_in_strips(values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(-3, 5, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.float32)
    image = Image.fromarray(ramp if values == "float" else (1000 * ramp).astype(np.int32))
    whole = pictures._to_8_bits(image)
    monkeypatch.setattr(pictures, "_VALUES_AT_ONCE", 3 * WIDTH)
    assert np.array_equal(pictures._to_8_bits(image), whole) and (whole.min(), whole.max()) == (0, 255)


def test_a_line_of_millions_is_refused() -> None:
    """It is within the limit of pixels, and would be cut into hundred thousands of tiles."""
    with pytest.raises(ImageError, match="a side"):
        pictures.check_size((37_000_000, 8), Limits())


def test_16_bit_colour_is_scaled() -> None:
    ramp = (gradient().astype(np.uint16) * 257).astype(">u2").tobytes()
    rows = [b"\0" + ramp[start : start + WIDTH * 6] for start in range(0, len(ramp), WIDTH * 6)]
    assert np.abs(decode(png(WIDTH, HEIGHT, b"".join(rows), depth=16)).astype(int) - gradient()).max() <= 1


@pytest.mark.parametrize("top", [1.0, 1234.5])
def test_float_greyscale_is_scaled(top: float) -> None:
    ramp = np.linspace(0, top, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    pixels = decode(encoded(Image.fromarray(ramp), "TIFF"))
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_32_bit_greyscale_is_scaled() -> None:
    ramp = np.linspace(-5_000_000, 5_000_000, HEIGHT * WIDTH).astype(np.int32).reshape(HEIGHT, WIDTH)
    pixels = decode(encoded(Image.fromarray(ramp), "TIFF"))
    assert (pixels.min(), pixels.max()) == (0, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_few_colours_become_rgb(mode: str) -> None:
    image = Image.fromarray(gradient()).convert(mode)
    assert np.array_equal(decode(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_transparency_lies_over_white() -> None:
    rgba = np.dstack([gradient(), np.zeros((HEIGHT, WIDTH), np.uint8)])
    rgba[: HEIGHT // 2, :, 3] = 255
    pixels = decode(encoded(Image.fromarray(rgba), "PNG"))
    assert np.array_equal(pixels[: HEIGHT // 2], gradient()[: HEIGHT // 2])
    assert (pixels[HEIGHT // 2 :] == 255).all()

    palette = Image.new("P", (WIDTH, HEIGHT), 3)
    palette.putpalette([0] * 768)
    assert (decode(encoded(palette, "PNG", transparency=3)) == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind: str) -> None:
    first, second = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert np.abs(decode(data).astype(int) - [255, 0, 0]).max() <= 3


def test_drone_jpegs_with_a_second_picture_are_jpegs() -> None:
    image = Image.fromarray(gradient())
    data = encoded(image, "MPO", save_all=True, append_images=[image])
    assert inspect(data).format == "JPEG"
    assert decode(data).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "kind_options",
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("TIFF", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("GIF", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("kept_share", [0.05, 0.5, 0.9])
def test_truncated_files_are_detected(kind_options: tuple[str, dict[str, Any]], kept_share: float) -> None:
    kind, options = kind_options
    data = encoded(noise(), kind, **options)
    assert reason_of(data[: int(len(data) * kept_share)]) == "truncated"


def test_an_uncompressed_tiff_with_a_wrong_length_of_strip_is_read() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "TIFF", compression="raw")
    data = bytearray(sink.getvalue())
    entry = data.index(struct.pack("<HHI", 279, 4, 1))  # StripByteCounts, one LONG
    data[entry + 8 : entry + 12] = struct.pack("<I", 10**6)
    assert np.array_equal(decode(bytes(data)), pixels)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_tail_of_zeros_is_a_lost_tail(progressive: bool) -> None:
    data = encoded(noise(), "JPEG", progressive=progressive)
    assert reason_of(data[: len(data) // 2] + bytes(len(data) // 2)) == "truncated"
    assert decode(data + bytes(4096)).shape == (HEIGHT, WIDTH, 3)  # padding after the end is harmless


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"GPS log of a flight\n" * 20, "not_an_image"),
        (b"<html><script>alert(1)</script></html>", "not_an_image"),
        (b"\0" * 5000, "not_an_image"),
        (b"%PDF-1.7 ...", "not_an_image"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(64), "not_an_image"),
        (b"\0\0\0\x18ftypheic" + bytes(200), "not_an_image"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


def test_formats_off_the_list_are_not_opened() -> None:
    assert reason_of(encoded(Image.fromarray(gradient()), "PPM")) == "not_an_image"
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n") == "not_an_image"


def test_damaged_data_is_corrupt() -> None:
    data = bytearray(picture("PNG"))
    start = data.index(b"IDAT") + 10
    data[start : start + 20] = bytes(20)
    assert reason_of(bytes(data)) == "corrupt"


def png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    """A PNG written by hand: RGB, ``rows`` with their filter bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def webp_header(width: int, height: int) -> bytes:
    body = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize(
    "data",
    [
        png(60_000, 60_000, bytes(1000)),
        webp_header(60_000, 60_000),
        picture("GIF")[:6] + struct.pack("<HH", 60_000, 60_000) + picture("GIF")[10:],
        picture("BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + picture("BMP")[26:],
    ],
    ids=["png", "webp", "gif", "bmp"],
)
def test_bombs_are_refused_by_their_header(data: bytes) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason_of(data) == "bomb"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes; it claims 10 GB


def test_the_limits_are_the_callers() -> None:
    assert reason_of(picture(), Limits(max_pixels=WIDTH * HEIGHT - 1)) == "bomb"
    assert reason_of(picture(), Limits(min_side=HEIGHT + 1)) == "too_small"
    assert decode(picture(), Limits(min_side=HEIGHT, max_pixels=WIDTH * HEIGHT)).shape == (HEIGHT, WIDTH, 3)
    one = encoded(Image.new("RGB", (1, 1)), "PNG")
    assert reason_of(one) == "too_small"
    assert decode(one, Limits(min_side=1)).shape == (1, 1, 3)
    # Above Pillow's own limit for the process and below ours: the size is not what is wrong with it.
    assert reason_of(png(14_000, 14_000, b"")) in ("truncated", "corrupt")


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
    st.floats(0.2, 1),
)
def test_damage_never_raises_anything_else(kind: str, hits: list[tuple[float, int]], kept_share: float) -> None:
    data = bytearray(picture(kind, exif=camera_exif().tobytes()) if kind not in ("BMP", "GIF") else picture(kind))
    for where, value in hits:
        data[int(where * (len(data) - 1))] = value
    damaged = bytes(data[: int(len(data) * kept_share)])
    try:
        pixels, facts = (
            decode(damaged, Limits(max_pixels=10_000_000)),
            inspect(damaged, Limits(max_pixels=10_000_000)),
        )
    except ImageError:
        return
    assert pixels.shape == (facts.height, facts.width, 3)


def camera_exif(**tags: Any) -> Image.Exif:
    exif = Image.Exif()
    camera = exif.get_ifd(0x8769)
    camera[0x9003] = tags.get("taken", "2026:03:01 13:45:10")
    if "offset" in tags:
        camera[0x9011] = tags["offset"]
    if "subsecond" in tags:
        camera[0x9291] = tags["subsecond"]
    rational = TiffImagePlugin.IFDRational
    position = exif.get_ifd(0x8825)
    position[1], position[3] = tags.get("latitude_ref", "N"), tags.get("longitude_ref", "E")
    position[2] = tags.get("latitude", (rational(47), rational(30), rational(36, 1)))
    position[4] = tags.get("longitude", (rational(8), rational(15), rational(0)))
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_time_and_place_are_read(kind: str) -> None:
    facts = inspect(picture(kind, exif=camera_exif().tobytes()))
    assert facts.captured_at == datetime(2026, 3, 1, 13, 45, 10, tzinfo=UTC)
    assert facts.latitude == pytest.approx(47.51)
    assert facts.longitude == pytest.approx(8.25)


def test_time_with_offset_and_south_west() -> None:
    exif = camera_exif(offset="+02:00", subsecond="25", latitude_ref="S", longitude_ref="W")
    facts = inspect(picture("JPEG", exif=exif.tobytes()))
    assert facts.captured_at == datetime(2026, 3, 1, 11, 45, 10, 250_000, tzinfo=UTC)
    assert facts.latitude == pytest.approx(-47.51)
    assert facts.longitude == pytest.approx(-8.25)


@pytest.mark.parametrize("taken", ["0000:00:00 00:00:00", "yesterday", "", "2026:13:45 99:00:00"])
def test_times_of_nonsense_are_none(taken: str) -> None:
    assert inspect(picture("JPEG", exif=camera_exif(taken=taken).tobytes())).captured_at is None


def test_places_of_nonsense_are_none() -> None:
    rational = TiffImagePlugin.IFDRational
    for latitude in ((rational(0, 0),) * 3, (rational(470), rational(0), rational(0)), (rational(47),)):
        facts = inspect(picture("JPEG", exif=camera_exif(latitude=latitude).tobytes()))
        assert (facts.latitude, facts.longitude) == (None, None)
    zero = (rational(0), rational(0), rational(0))
    facts = inspect(picture("JPEG", exif=camera_exif(latitude=zero, longitude=zero).tobytes()))
    assert facts.latitude is None


def test_damaged_exif_costs_no_picture() -> None:
    data = picture("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xee" * 40)
    facts = inspect(data)
    assert (facts.width, facts.captured_at, facts.latitude) == (WIDTH, None, None)
    assert decode(data).shape == (HEIGHT, WIDTH, 3)


def test_preprocess_is_antialiased_and_repeatable() -> None:
    checks = np.zeros((640, 480, 3), np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 255
    small = preprocess(checks)
    assert small.shape == (160, 160, 3)
    assert np.abs(small.astype(int) - 128).max() <= 2  # without antialiasing: all black or all white
    assert np.array_equal(small, preprocess(checks))
    assert small.flags.writeable
    same = gradient()[:40, :40]
    assert np.array_equal(preprocess(same, 40), same)
    assert preprocess(np.full((3, 900, 3), 77, np.uint8), 32).mean() == 77


def test_encoders_round_trip() -> None:
    assert np.array_equal(decode(images.encode_png(gradient())), gradient())
    assert np.abs(decode(images.encode_jpeg(gradient(), 95)).astype(int) - gradient()).mean() < 4


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name))
def test_names_survive_escaping(raw: bytes) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    escaped = images.escape_name(name)
    escaped.encode("utf-8")
    assert images.unescape_name(escaped) == name
    if "\\" not in name and not any("\udc80" <= letter <= "\udcff" for letter in name):
        assert escaped == name


def test_a_reader_decodes_a_photo_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "photo.png").write_bytes(picture())
    calls: list[bytes] = []

    def counted(data: bytes, limits: Limits) -> images.Pixels:
        calls.append(data)
        return decode(data, limits)

    monkeypatch.setattr(images, "decode", counted)
    reader = PhotoReader(str(tmp_path))
    digest = hashlib.sha256(picture()).hexdigest()
    whole = reader.read(Source("a b/photo.png", digest))
    part = reader.read(Source("a b/photo.png", digest, tile=Tile(10, 5, 20, 8)))
    assert np.array_equal(part, whole[5:13, 10:30])
    assert len(calls) == 1
    with pytest.raises(ImageError, match="changed"):
        reader.read(Source("a b/photo.png", digest, tile=Tile(50, 5, 20, 8)))


def test_a_reader_says_what_happened_to_the_file(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.png").write_bytes(picture())
    reader = PhotoReader(str(root))
    for file, reason in (("gone.png", "vanished"), ("a.png/b.png", "vanished"), ("a//b.png", "unreadable")):
        with pytest.raises(ImageError) as error:
            reader.read(Source(file))
        assert error.value.reason == reason
    with pytest.raises(ImageError, match="changed"):
        reader.read(Source("a.png", "0" * 64))
    assert reader.read(Source("a.png", None)).shape == (HEIGHT, WIDTH, 3)
    (root / "folder.png").mkdir()
    with pytest.raises(ImageError, match="unreadable"):
        reader.read(Source("folder.png"))
    # The folder itself gone is a fault of the place, not of its thousand photos.
    (root / "folder.png").rmdir()
    (root / "a.png").unlink()
    root.rmdir()
    with pytest.raises(StoreError, match="not there any more"):
        reader.read(Source("a.png", "0" * 64))


def test_reading_ahead_gives_what_reading_one_by_one_gives(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(rolled(n))
    (tmp_path / "half.png").write_bytes(picture()[:-40])
    tiles = [Source("1.png", tile=Tile(x, 0, 8, 8)) for x in (0, 8)]
    sources = [Source("0.png"), Source("half.png"), Source("gone.png"), *tiles, Source("2.png"), Source("2.png")]
    sources += [Source("0.png", "0" * 64)]
    with PhotoReader(str(tmp_path)) as reader:
        ahead = list(reader.read_each(sources))
    reasons = []
    with PhotoReader(str(tmp_path)) as reader:
        for source, found in zip(sources, ahead, strict=True):
            if isinstance(found, ImageError):
                reasons.append(found.reason)
                with pytest.raises(ImageError, match=found.reason):
                    reader.read(source)
            else:
                assert np.array_equal(found, reader.read(source))
    assert reasons == ["truncated", "vanished", "changed"]


def test_a_reader_that_is_left_early_leaves_no_answer_behind(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(rolled(n))
    with PhotoReader(str(tmp_path)) as reader:
        first = next(iter(reader.read_each([Source("0.png"), Source("1.png")])))
    assert np.array_equal(decode(rolled(0)), first)


def test_a_network_fault_is_no_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    reader = PhotoReader("s3://bucket/prefix")
    with pytest.raises(StoreError):
        reader.read(Source("a.png"))


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("corrupt", "why")))
    assert (error.reason, error.detail, str(error)) == ("corrupt", "why", "corrupt: why")

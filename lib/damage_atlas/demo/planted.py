"""What a real archive brings along uninvited: duplicates, broken and hostile files, odd formats, odd names.

Each file's expected fate goes into the truth: its status (ok, duplicate, quarantined, ignored) and, where it
is quarantined, the reason the catalog must give.
"""

import io
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from damage_atlas.demo.plan import MODE_LIST, PLANTED, Plan, Shot
from damage_atlas.demo.render import close_up, exif_of, jpeg_bytes, truth_row

OUTSIDE = "not-in-the-archive.jpg"  # beside images/: where the hostile link points

ODD_FORMATS = ("cmyk", "grey", "exif_rotated", "png_16_bit", "png_palette", "gif_animated")
ODD_NAMES = (
    "pier 3, north face.jpg",
    "\"east\" 'abutment'.jpg",
    "<img src=x onerror=alert(1)><script>.jpg",
    "first line\nsecond line.jpg",
    "Brücke-Längsträger-№7-橋.jpg",
)
SIDE_CARS = {
    "notes.txt": b"Bearing 2 not accessible. Light rain from 11:40.\n",
    "flight.xml": b'<?xml version="1.0"?><flight drone="M3E"/>\n',
    "Thumbs.db": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504),
    ".DS_Store": b"\x00\x00\x00\x01Bud1" + bytes(120),
}


def plant(root: Path, plan: Plan) -> Iterator[dict[str, str]]:
    """Writes all planted files under ``root`` (the folder ``images``), whose close-ups must exist already.

    Yields their rows of the truth.
    """
    yield from _copies(root, plan)
    yield from _oddities(root, plan)
    yield from _broken(root, plan)
    for name, content in SIDE_CARS.items():
        for delivery in plan.deliveries:
            file = f"archive/{delivery}/{plan.assets[0].name}/{name}"
            _write(root / file, content)
            yield _row(file, "side_car", "ignored", delivery=delivery, asset=plan.assets[0].name)


def _row(file: str, planted: str, status: str, reason: str = "", delivery: str = "", asset: str = "") -> dict[str, str]:
    """A row of the truth for a file that shows nothing."""
    row = dict.fromkeys(("class", "mode", "severity", "background", "group", "boxes"), "")
    known = {"planted": planted, "status": status, "reason": reason, "delivery": delivery, "asset": asset}
    return {"file": file} | row | known


def _copies(root: Path, plan: Plan) -> Iterator[dict[str, str]]:
    """The same asset delivered twice, or under a second name; the same bytes under two assets."""
    for k in range(plan.n_copies):
        for delivery in range(plan.n_deliveries):
            room = plan.first_of(delivery + 1) - plan.first_of(delivery)
            # Three shots side by side, spread over the delivery; a small archive copies as many as it has.
            if delivery != k % plan.n_deliveries or 3 * (k + 1) > room:
                continue
            first = plan.first_of(delivery) + (room - 3) * k // plan.n_copies
            again, renamed, elsewhere = (plan.archive(first + i) for i in range(3))
            assert again.asset and renamed.asset and elsewhere.asset
            if delivery + 1 < plan.n_deliveries:
                later = plan.deliveries[delivery + 1]
                file = f"archive/{later}/{again.asset.name}/{Path(again.file).name}"
                yield _copy(root, again, file, "duplicate", "duplicate", later, again.asset.name)
            # "_copy" sorts after the original's "." in a listing, so the copy is the one that is surplus.
            file = renamed.file.removesuffix(".jpg") + "_copy.jpg"
            yield _copy(root, renamed, file, "duplicate", "duplicate", renamed.delivery, renamed.asset.name)
            other = next(a for a in plan.assets if a != elsewhere.asset and a.prefix == elsewhere.asset.prefix)
            file = f"archive/{elsewhere.delivery}/{other.name}/{Path(elsewhere.file).name}"
            yield _copy(root, elsewhere, file, "same_bytes", "ok", elsewhere.delivery, other.name)


def _copy(root: Path, shot: Shot, file: str, planted: str, status: str, delivery: str, asset: str) -> dict[str, str]:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / shot.file, root / file)
    known = {"file": file, "planted": planted, "status": status, "delivery": delivery, "asset": asset}
    return truth_row(shot) | known


def _odd_shot(plan: Plan, number: int, name: str, planted: str) -> Shot:
    """A shot for a planted file: a damage in turn, on the first bridge span, in the deliveries in turn."""
    delivery = number % plan.n_deliveries
    span = plan.assets[0]
    return Shot(
        file=f"archive/{plan.deliveries[delivery]}/{span.name}/{name}",
        rng_key=(plan.seed, PLANTED, number),
        layers=(MODE_LIST[5 * number % len(MODE_LIST)],),
        material="deck",
        group=f"{span.name}-deck",
        planted=planted,
        delivery=plan.deliveries[delivery],
        asset=span,
        captured_at=plan.captured_at(delivery, -90 * (number + 1)),
    )


def _oddities(root: Path, plan: Plan) -> Iterator[dict[str, str]]:
    """Readable files that careless code trips over."""
    for number, kind in enumerate(ODD_FORMATS):
        suffix = {"png": ".png", "gif": ".gif"}.get(kind[:3], ".jpg")
        shot = _odd_shot(plan, number, f"odd_{kind}{suffix}", f"odd:{kind}")
        picture, severity = close_up(shot)
        _write(root / shot.file, odd_bytes(kind, picture, shot))
        yield truth_row(shot, severity)
    for number, name in enumerate(ODD_NAMES, start=len(ODD_FORMATS)):
        shot = _odd_shot(plan, number, name, "odd:name")
        picture, severity = close_up(shot)
        _write(root / shot.file, jpeg_bytes(picture, 88, exif_of(shot)))
        yield truth_row(shot, severity)


def odd_bytes(kind: str, picture: Image.Image, shot: Shot) -> bytes:
    """``picture`` in one of the formats of `ODD_FORMATS`."""
    if kind == "cmyk":
        return jpeg_bytes(picture.convert("CMYK"), 88, exif_of(shot))
    if kind == "grey":
        return jpeg_bytes(picture.convert("L"), 88, exif_of(shot))
    if kind == "exif_rotated":  # stored lying on its side; orientation 6 asks the viewer to turn it back
        exif = exif_of(shot)
        exif[ExifTags.Base.Orientation] = 6
        return jpeg_bytes(picture.transpose(Image.Transpose.ROTATE_90), 88, exif)
    buffer = io.BytesIO()
    if kind == "png_16_bit":
        grey = np.asarray(picture.convert("L"), dtype=np.uint16) * np.uint16(257)
        Image.fromarray(grey).save(buffer, "PNG")
    elif kind == "png_palette":
        picture.quantize(64).save(buffer, "PNG")
    elif kind == "gif_animated":
        frames = [picture.point([min(255, int(v * gain)) for v in range(256)] * 3) for gain in (1.0, 1.1, 0.9)]
        paletted = [frame.quantize(128) for frame in frames]
        paletted[0].save(buffer, "GIF", save_all=True, append_images=paletted[1:], duration=200, loop=0)
    else:
        raise ValueError(f"demo: no odd format {kind!r}; choose one of {', '.join(ODD_FORMATS)}.")
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bytes(width: int, height: int, stream: bytes) -> bytes:
    """An 8-bit grey PNG that claims ``width`` x ``height`` pixels, whatever its ``stream`` holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", stream) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def broken_files(plan: Plan) -> dict[str, tuple[str, bytes]]:
    """Name -> (reason for the quarantine, content) of every file that cannot be used."""
    shot = _odd_shot(plan, 90, "sound.jpg", "")
    whole = jpeg_bytes(close_up(shot)[0], 88, exif_of(shot))
    rng = np.random.default_rng([plan.seed, PLANTED, 91])
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as inner:
        inner.writestr(zipfile.ZipInfo("payload.sh", (2026, 3, 5, 9, 0, 0)), "echo pictures do not do this\n")
    dot = io.BytesIO()
    Image.new("RGB", (1, 1), (120, 120, 118)).save(dot, "PNG")
    # A JPEG's first bytes, a frame header of 9 bits a sample that no decoder takes, then static.
    jfif = bytes.fromhex("ffd8ffe000104a46494600010100000100010000")
    frame = bytes.fromhex("ffc0001109010001000301220002110103110100")
    static = jfif + frame + rng.bytes(3000) + b"\xff\xda" + rng.bytes(1000) + b"\xff\xd9"
    bad_header = bytearray(png_bytes(64, 64, zlib.compress(bytes(64 * 65))))
    bad_header[8 + 8 + 13] ^= 0xFF  # signature, length and name, header: then comes the header's checksum
    return {
        "empty.jpg": ("empty", b""),
        "cut_short.jpg": ("truncated", whole[: len(whole) * 3 // 5]),
        "letter.jpg": ("not_an_image", b"Dear colleague, the photos follow by post.\n"),
        "bomb.png": ("bomb", png_bytes(60_000, 60_000, zlib.compress(bytes(64)))),
        "static.jpg": ("corrupt", static),
        "bad_header.png": ("corrupt", bytes(bad_header)),
        "archive.png": ("not_an_image", archive.getvalue()),
        "dot.png": ("too_small", dot.getvalue()),
    }


def _broken(root: Path, plan: Plan) -> Iterator[dict[str, str]]:
    asset = plan.assets[1].name
    for number, (name, (reason, content)) in enumerate(broken_files(plan).items()):
        delivery = plan.deliveries[number % plan.n_deliveries]
        file = f"archive/{delivery}/{asset}/{name}"
        _write(root / file, content)
        yield _row(file, f"corrupt:{reason}", "quarantined", reason, delivery, asset)

    shot = replace(_odd_shot(plan, 92, "", ""), asset=None)
    _write(root.parent / OUTSIDE, jpeg_bytes(close_up(shot)[0], 88, exif_of(shot)))
    file = f"archive/{plan.deliveries[-1]}/{asset}/elsewhere.jpg"
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).symlink_to(Path("..", "..", "..", "..", OUTSIDE))
    yield _row(file, "corrupt:link_outside", "quarantined", "link_outside", plan.deliveries[-1], asset)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

"""What a picture's EXIF says: orientation, time, place. Damage there never costs the picture."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from PIL import ExifTags, Image

from damage_atlas.decoding.faults import DECODER_FAULTS


def exif_of(image: Image.Image) -> dict[int, Any]:
    """EXIF tags of the picture and of its Exif part, GPS below GPSInfo; empty where they are damaged."""
    try:
        tags = image.getexif()
        if not tags:
            return {}
        gps = dict(tags.get_ifd(ExifTags.IFD.GPSInfo))
        return dict(tags) | dict(tags.get_ifd(ExifTags.IFD.Exif)) | {int(ExifTags.IFD.GPSInfo): gps}
    except DECODER_FAULTS:
        return {}  # metadata is a guest in the file: its damage never costs the picture


def orientation(image: Image.Image) -> int:
    """How the picture must be turned, 1 to 8; 1, not at all, where that is not said."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except DECODER_FAULTS:
        return 1
    return value if isinstance(value, int) else 1


def captured_at(exif: dict[int, Any]) -> datetime | None:
    """When the picture was taken; without an offset the time is taken for UTC. None where that is not said."""
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


def position(exif: dict[int, Any]) -> tuple[float | None, float | None]:
    """Latitude and longitude in degrees, WGS 84; None where there was no fix."""
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

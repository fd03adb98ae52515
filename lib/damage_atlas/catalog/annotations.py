"""What is said about a picture beside it: in a manifest, in a tar file, in a video's side-car."""

from __future__ import annotations

import csv
import io
import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from datetime import UTC, datetime, time
from typing import Any, Final

Annotations = dict[str, Any]  # some of the columns below -> value

_TEXT: Final = ("group", "asset_id", "inspection_id", "element")
_NUMBERS: Final = ("position_m", "clock", "latitude", "longitude")
ANNOTATION_COLUMNS: Final = ("labels", *_TEXT, *_NUMBERS, "captured_at")


def parse_annotations(said: Mapping[str, Any]) -> Annotations:
    """Typed values of the known keys; ``label`` and ``labels`` (a list, or text joined by ``+``) mean the same.

    Raises:
        ValueError: a value that cannot be understood; the message names its key.
    """
    found: Annotations = {}
    for key, value in said.items():
        if value is None or value == "":
            continue
        try:
            if key in ("label", "labels"):
                names = value if isinstance(value, list) else str(value).split("+")
                found["labels"] = sorted({_text(name) for name in names} - {""})
            elif key in _TEXT:
                found[key] = _text(value)
            elif key in _NUMBERS:
                number = float(value)
                if not math.isfinite(number):
                    raise ValueError
                found[key] = number
            elif key == "captured_at":
                moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
                # Midnight of whatever zone is a day without a time, and must stay that day.
                is_day = moment.time() == time.min
                zone = UTC if is_day else moment.tzinfo or UTC
                found[key] = moment.replace(tzinfo=zone).astimezone(UTC)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{key} {str(value)[:40]!r} cannot be understood") from error
    return found


def _text(value: Any) -> str:
    text = str(value).strip()
    text.encode()  # half a surrogate pair, which JSON may spell, has no place in a table
    return text


def parse_member(name: str, data: bytes) -> Annotations:
    """What a ``.json`` or ``.cls`` member of a tar file says about the picture with the same stem (WebDataset).

    Raises:
        ValueError: it is damaged.
    """
    text = data.decode("utf-8")
    if name.lower().endswith(".cls"):
        return parse_annotations({"label": text.strip()})
    said = json.loads(text)
    if not isinstance(said, dict):
        raise ValueError("it is no JSON object")
    return parse_annotations(said)


class VideoSideCar:
    """A CSV beside a video, ``time_s`` and what holds from there on; ``position_m`` and ``clock`` run on linearly.

    Raises:
        ValueError: no column ``time_s``, a line that cannot be understood, or times that run backwards.
    """

    def __init__(self, text: str) -> None:
        rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
        if not rows or "time_s" not in rows[0]:
            raise ValueError("wanted are the columns time_s and, say, position_m")
        self._times = [float(row["time_s"]) for row in rows]
        if not all(map(math.isfinite, self._times)):
            raise ValueError("a time_s is no number of seconds")
        if self._times != sorted(self._times):
            raise ValueError("time_s runs backwards")
        self._said = [parse_annotations({k: v for k, v in row.items() if k != "time_s"}) for row in rows]

    def at(self, time_s: float) -> Annotations:
        """What holds at a time of the video; nothing before the first line."""
        after = bisect_right(self._times, time_s)
        if after == 0:
            return {}
        said = dict(self._said[after - 1])
        if after < len(self._times):
            share = (time_s - self._times[after - 1]) / (self._times[after] - self._times[after - 1])
            for name in ("position_m", "clock"):
                start, end = said.get(name), self._said[after].get(name)
                if start is not None and end is not None:
                    said[name] = round(start + share * (end - start), 6)
        return said

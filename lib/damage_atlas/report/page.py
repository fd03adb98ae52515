"""The page: one file that opens anywhere, asks the network for nothing, and runs only the script it was made with.

Plotly was looked at and left out: its WebGL scatter builds functions from text, so a content security policy
would have to allow ``unsafe-eval``, and its 4.8 MB would outweigh everything else in the page; it has no hover pictures
either. The map is some 300 lines on a 2-D canvas instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Final

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from damage_atlas.report.assets import inspection_name
from damage_atlas.report.changes import DECISION_WORD, MOVE_WORD, PICTURED, WORD
from damage_atlas.report.facts import UNLABELLED, Facts, Point
from damage_atlas.report.palette import NOISE_COLOR, Look, look
from damage_atlas.report.sampling import CLUSTER_FLOOR
from damage_atlas.report.thumbnails import SHEET_COLUMNS, Sheets

# More rows make a page slow and no reader happy; report.json and assets.parquet hold all of them.
_MAX_LISTED = 5000
_MAX_ASSETS = 50
_MAX_MOVES = 100
_MAX_PERIODS = 12
_NO_ASSET: Final = 65535
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"})


def render_page(
    facts: Facts, drawn: Sequence[Point], sheets: Sheets, thumbnails: int, pictures: Mapping[str, bytes]
) -> bytes:
    """The page as HTML, UTF-8.

    Args:
        drawn: the points on the map; the first ``thumbnails`` of them are in ``sheets``.
        pictures: picture_key or heatmap_key -> JPEG or PNG; observation_id too, of alerts and the queue.
    """
    label_index = {row.label: i for i, row in enumerate(facts.classes)}
    looks = {"cluster": {c.cluster_id: look(c.cluster_id) for c in facts.clusters}, "label": class_looks(facts)}
    style = Markup(_file("page.css") + _colours(looks))
    script = Markup(_file("page.js"))
    uris = {key: _data_uri(data) for key, data in pictures.items()}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    filters: dict[str, Callable[..., str]] = {
        "visible": visible,
        "number": lambda n: f"{n:,}",
        "percent": _percent,
        "inspection": lambda name, asset_id: visible(inspection_name(name, asset_id)),
        "seconds": _duration,
    }
    environment.filters |= filters
    by_id = {c.cluster_id: c for c in facts.clusters}
    pictured = [c for c in facts.changes if c.status in PICTURED and c.cluster_id in by_id]
    text = environment.from_string(_file("page.html.j2")).render(
        facts=facts,
        policy=(
            f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        style=style,
        script=script,
        map_data=_json_block(_map_data(facts, drawn, sheets, thumbnails, label_index, looks)),
        looks=looks,
        words=WORD,
        label_index=label_index,
        by_id=by_id,
        pictured=pictured,
        minor=[c for c in facts.changes if c not in pictured],
        picture=lambda key: uris[key],
        seen=uris.get,
        drawn=_Positions(drawn),
        drawn_count=len(drawn),
        sheets_count=thumbnails,
        unreadable=len(sheets.missing),
        floor=CLUSTER_FLOOR,
        listed_limit=_MAX_LISTED,
        asset_limit=_MAX_ASSETS,
        move_limit=_MAX_MOVES,
        period_limit=_MAX_PERIODS,
        move_words=MOVE_WORD,
        decision_words=DECISION_WORD,
        courses_of={course.asset_id: course for course in facts.asset_courses},
        model_pairs=list(_pairs({k: v for k, v in facts.model_card.items() if k != "train_spec"})),
        map_pairs=list(_pairs(facts.map)),
        recall_pairs=list(_pairs(facts.recall)),
        setting_pairs=list(_pairs({"images": facts.images_root, **facts.settings})),
    )
    return text.encode("utf-8", "backslashreplace")


def class_looks(facts: Facts) -> dict[int, Look]:
    """Looks of the classes, by their place in ``facts.classes``; images without a label are grey."""
    grey = Look(NOISE_COLOR, "circle")
    return {i: grey if row.label == UNLABELLED else look(i + 1) for i, row in enumerate(facts.classes)}


def cluster_centres(facts: Facts, points: Sequence[Point]) -> dict[int, tuple[float, float]]:
    """Where a cluster's number is drawn: on its member that is nearest to the median of its members."""
    members: dict[int, list[Point]] = {c.cluster_id: [] for c in facts.clusters}
    for point in points:
        if point.cluster_id is not None:
            members[point.cluster_id].append(point)
    centres = {}
    for cluster, inside in members.items():
        if inside:
            xy_N2 = np.array([(p.x, p.y) for p in inside])
            nearest = np.linalg.norm(xy_N2 - np.median(xy_N2, axis=0), axis=1).argmin()
            centres[cluster] = (float(xy_N2[nearest, 0]), float(xy_N2[nearest, 1]))
    return centres


def visible(text: str) -> str:
    r"""``text`` with everything that would not show, or would reorder what shows, as an escape (``\n``, ``\u202e``)."""
    return "".join(_escape(c) if unicodedata.category(c) in _UNSEEN else c for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class _Positions:
    """Observation -> its place among the drawn points, or an empty text when it is not drawn."""

    def __init__(self, drawn: Sequence[Point]) -> None:
        self._at = {p.observation_id: i for i, p in enumerate(drawn)}

    def __getitem__(self, observation_id: str) -> int | str:
        return self._at.get(observation_id, "")


def _map_data(
    facts: Facts,
    drawn: Sequence[Point],
    sheets: Sheets,
    thumbnails: int,
    label_index: Mapping[str, int],
    looks: Mapping[str, Mapping[int, Look]],
) -> dict[str, Any]:
    """What the script draws: columns as base64 of little-endian integers, names as text."""
    if not drawn:
        return {"count": 0}
    xy_N2 = np.array([(p.x, p.y) for p in drawn], dtype=np.float64)
    low, high = xy_N2.min(axis=0), xy_N2.max(axis=0)
    span = float((high - low).max()) or 1.0
    corner = (low + high) / 2 - span / 2

    def packed(xy: NDArray[np.float64]) -> NDArray[np.uint16]:
        return np.asarray(np.rint((xy - corner) / span * 65535).clip(0, 65535), dtype=np.uint16)

    cluster_key = {c.cluster_id: i for i, c in enumerate(facts.clusters, start=1)}
    # Two bytes an asset; those beyond are found in the tables.
    assets = sorted({p.asset_id for p in drawn if p.asset_id is not None})[:_NO_ASSET]
    asset_key = {name: i for i, name in enumerate(assets)}
    centres = cluster_centres(facts, drawn)
    # On a first version every cluster is born; a map full of "new" would say nothing.
    first = facts.previous_version is None
    clusters: list[dict[str, Any]] = [{"name": "noise", "color": NOISE_COLOR, "shape": "circle", "status": ""}]
    for c in facts.clusters:
        x, y = packed(np.array(centres.get(c.cluster_id, tuple(corner)))).tolist()
        style = looks["cluster"][c.cluster_id]
        named = {"name": str(c.cluster_id), "status": "" if first else WORD[c.status]}
        clusters.append(named | {"color": style.color, "shape": style.shape, "x": x, "y": y})
    coordinates = packed(xy_N2)
    flags = [p.given + 2 * (p.delivery is not None and p.delivery == facts.delivery) for p in drawn]
    return {
        "count": len(drawn),
        "x": _column(coordinates[:, 0], "<u2"),
        "y": _column(coordinates[:, 1], "<u2"),
        "cluster": _column([0 if p.cluster_id is None else cluster_key[p.cluster_id] for p in drawn], "<u2"),
        "label": _column([label_index[p.label or UNLABELLED] for p in drawn], "<u2"),
        "asset": _column([asset_key.get(p.asset_id or "", _NO_ASSET) for p in drawn], "<u2"),
        "confidence": _column([_percentile(p.confidence, 100) for p in drawn], "u1"),
        "novelty": _column([_percentile(p.novelty, 200) for p in drawn], "u1"),
        "flags": _column(flags, "u1"),
        "names": [visible(p.place) for p in drawn],
        "assets": [visible(name) for name in assets],
        "clusters": clusters,
        "labels": [
            {"name": visible(row.label), "known": row.label != UNLABELLED, "color": looks["label"][i].color,
             "shape": looks["label"][i].shape}
            for i, row in enumerate(facts.classes)
        ],
        "thumbnails": thumbnails,
        "thumbnail_size": sheets.size,
        "sheet_columns": SHEET_COLUMNS,
        "sheets": [_data_uri(jpeg) for jpeg in sheets.jpegs],
        "missing": list(sheets.missing),
    }  # fmt: skip


def _percentile(value: float, top: int) -> int:
    return int(np.clip(np.rint(100 * np.nan_to_num(value)), 0, top))


def _column(values: Any, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")


def _json_block(document: Any) -> Markup:
    """JSON that may stand inside ``<script>``: no character that could end it or start markup."""
    text = json.dumps(document, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _data_uri(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _source(text: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return Markup(f"'sha256-{digest}'")


def _colours(looks: Mapping[str, Mapping[int, Look]]) -> str:
    rules = [f".{kind}-{key}{{--dot:{style.color}}}" for kind, group in looks.items() for key, style in group.items()]
    # A policy without inline styles: shades of the table's cells are classes too.
    rules += [f".heat{i}{{background:rgba(var(--heat),{0.055 * i:.3f})}}" for i in range(1, 10)]
    return "".join([*rules, f".noise{{--dot:{NOISE_COLOR}}}"])


def _file(name: str) -> str:
    return resources.files("damage_atlas.report").joinpath("page", name).read_text(encoding="utf-8")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _pairs(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings and facts as (dotted name, text)."""
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _pairs(value, f"{name}.")
        elif isinstance(value, float):
            yield name, re.sub(r"\.0$", "", f"{value:.6g}")
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value[:50])) + (" …" if len(value) > 50 else "")
        else:
            yield name, "–" if value is None else str(value)

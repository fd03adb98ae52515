"""The paper's figures as PNG: class map and cluster map (Figures 3, 4), picture rows and heat maps (Figures 5, 6)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from damage_atlas.report.palette import NOISE_COLOR, Look

Floats = NDArray[np.float64]

_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}
_DPI = 150
_LEGEND_ROWS = 24
_INK = "#16191d"


def draw_map(
    xy_N2: Floats,
    group_N: Sequence[int | None],
    names: Mapping[int, str],
    looks: Mapping[int, Look],
    title: str,
    centres: Mapping[int, tuple[float, float]] | None = None,
) -> bytes:
    """A scatter of the map as PNG; group None is grey, drawn below and called noise.

    Args:
        names: group -> legend entry; groups absent here have no points.
        centres: group -> where its number is drawn.
    """
    size = float(np.clip(9000 / max(len(xy_N2), 1), 2, 26))
    columns = -(-len(names) // _LEGEND_ROWS)
    figure = Figure(figsize=(6.4 + 1.5 * max(columns, 1), 6.0), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    _bare(axes, title)
    groups = np.array([-1 if g is None else g for g in group_N], dtype=np.int64)
    handles = []
    for group in [-1, *names]:
        member = groups == group
        style = Look(NOISE_COLOR, "circle") if group == -1 else looks[group]
        if member.any():
            axes.scatter(
                xy_N2[member, 0], xy_N2[member, 1], s=size * (0.6 if group == -1 else 1), c=style.color,
                marker=_MARKERS[style.shape], linewidths=0, alpha=0.85,
            )  # fmt: skip
            text = names.get(group, "noise" if centres is not None else "no label")
            handles.append(
                Line2D([], [], marker=_MARKERS[style.shape], color=style.color, ls="", ms=6, label=_plain(text))
            )
    for group, (x, y) in (centres or {}).items():
        axes.annotate(
            str(group), (x, y), ha="center", va="center", fontsize=11, fontweight="bold", color="#111",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    if handles:
        figure.legend(
            handles=handles, loc="outside right upper", ncols=max(columns, 1), frameon=False, fontsize=8,
            handletextpad=0.2, columnspacing=0.8,
        )  # fmt: skip
    return _png(figure)


def draw_rows(rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], title: str, cell_px: int) -> bytes:
    """Rows of pictures (each cell_px x cell_px x 3) with a name in front, as PNG; the first picture is the sample.

    Pasted pixel by pixel: a plotting library would resample some hundred pictures, slowly, and blur them. The sheet has
    256 colours of its own: photographs in full colour make a PNG of twice to three times the size.
    """
    columns = max((len(pictures) for _, pictures in rows), default=1)
    gap, margin, head, foot = 4, 56, 40, 26
    step = cell_px + gap

    def left(column: int) -> int:
        return margin + column * step + (2 * gap if column else 0)  # the sample stands a little apart

    sheet = Image.new("RGB", (left(columns) + gap, head + max(len(rows), 1) * step + foot), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((gap, head / 2), title, fill=_INK, font=ImageFont.load_default(18), anchor="lm")
    for i, (name, pictures) in enumerate(rows):
        top = head + i * step
        pen.text((margin - 10, top + cell_px / 2), name, fill=_INK, font=ImageFont.load_default(18), anchor="rm")
        for j, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (left(j), top))
    if rows:
        for j in range(columns):
            pen.text(
                (left(j) + cell_px / 2, sheet.height - foot / 2 - gap), str(j) if j else "sample", fill=_INK,
                font=ImageFont.load_default(13), anchor="mm",
            )  # fmt: skip
    sink = io.BytesIO()
    sheet.quantize(256, dither=Image.Dither.NONE).save(sink, "PNG", optimize=True)
    return sink.getvalue()


def _bare(axes: Axes, title: str) -> None:
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(_plain(title), fontsize=11, loc="left")


def _plain(text: str) -> str:
    """``text`` in the characters that the figures' font has; the page shows all of them."""
    font = get_font(findfont("DejaVu Sans"))
    drawable = "".join(c if font.get_char_index(ord(c)) else "\u25a1" for c in text)
    # A pair of dollars would start mathematics.
    return drawable.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()

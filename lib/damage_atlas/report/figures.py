"""The paper's figures as PNG: class map and cluster map (Figures 3, 4), picture rows and heat maps (Figures 5, 6)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from damage_atlas.report.palette import NOISE_COLOR, Look

Floats = NDArray[np.float64]

_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}
_DPI = 150
_CELL_IN = 0.62  # inches, each side of a picture in a row
_LEGEND_ROWS = 24


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


def draw_rows(rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], title: str, cell_px: int = 96) -> bytes:
    """Rows of pictures (each cell_px x cell_px x 3) with a name in front, as PNG; the first picture is the sample."""
    columns = max((len(pictures) for _, pictures in rows), default=1)
    gap = 4
    step = cell_px + gap
    wall = np.full((max(len(rows), 1) * step, columns * step + gap, 3), 255, dtype=np.uint8)
    for i, (_, pictures) in enumerate(rows):
        for j, picture in enumerate(pictures):
            left = j * step + (gap if j else 0)  # the sample stands a little apart
            wall[i * step : i * step + cell_px, left : left + cell_px] = picture
    width, height = _CELL_IN * wall.shape[1] / step, _CELL_IN * wall.shape[0] / step
    figure = Figure(figsize=(width + 1.2, height + 0.7), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    _bare(axes, title)
    axes.imshow(wall, interpolation="lanczos")
    axes.set_yticks([i * step + cell_px / 2 for i in range(len(rows))], [_plain(name) for name, _ in rows], fontsize=8)
    axes.tick_params(length=0)
    if rows:
        axes.set_xticks(
            [cell_px / 2, *(j * step + gap + cell_px / 2 for j in range(1, columns))],
            ["sample", *(str(j) for j in range(1, columns))],
            fontsize=7,
        )
        axes.xaxis.set_ticks_position("bottom")
    return _png(figure)


def _bare(axes: Axes, title: str) -> None:
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(_plain(title), fontsize=11, loc="left")


def _plain(text: str) -> str:
    # A pair of dollars would start mathematics.
    return text.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()

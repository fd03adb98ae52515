"""Figures of the experiments' tables: a dot for each run, the mean and its 95% interval beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from damage_atlas.experiments.log import Row, interval

_DOT_SPREAD = 0.12
_DPI = 120


def draw_scores(rows: Sequence[Row], by: str, scores: Sequence[str]) -> bytes:
    """A PNG with a panel for each of ``scores`` and a line for each value of ``by``, in their order."""
    names = list(dict.fromkeys(row[by] for row in rows))
    figure = Figure(figsize=(3.2 * len(scores), 0.4 * len(names) + 1.6), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for panel, score in zip(panels, scores, strict=True):
        for place, name in enumerate(names):
            values = [row[score] for row in rows if row[by] == name and score in row]
            if not values:
                continue
            jitter = np.random.default_rng(0).uniform(-_DOT_SPREAD, _DOT_SPREAD, len(values))
            panel.scatter(values, place + jitter, s=10, alpha=0.4, color="tab:blue", linewidths=0)
            mean, half = interval(values)
            panel.errorbar(mean, place, xerr=half, fmt="o", color="black", capsize=3)
        panel.set_title(score.replace("_", " "), fontsize=9)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()

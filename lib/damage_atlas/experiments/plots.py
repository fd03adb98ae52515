"""Figures of the experiments' tables: a dot for each run, the mean and its 95% interval beside them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from damage_atlas.experiments.log import Row, interval

_DOT_SPREAD = 0.12
_DPI = 120


def draw_scores(rows: Sequence[Row], by: str, scores: Sequence[str]) -> bytes:
    """A PNG with a panel for each of ``scores`` and a line for each value of ``by``, in their order.

    Without scores, as where all trainings diverged, one panel is empty.
    """
    scores = scores or ["no scores"]
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
    return _png(figure)


def draw_axes(rows: Sequence[Row], axes: Mapping[str, Sequence[str]], scores: Sequence[str]) -> bytes:
    """A PNG with a line of panels for each of ``scores`` and a column for each axis, its values from left to right.

    Args:
        rows: each with ``places``, the pairs of axis and value that it stands for.
    """
    figure = Figure(figsize=(2.4 * len(axes), 1.9 * len(scores) + 0.4), dpi=_DPI, layout="constrained")
    panels = figure.subplots(len(scores), len(axes), sharey="row", squeeze=False)
    for column, (axis, values) in enumerate(axes.items()):
        for line, score in enumerate(scores):
            panel = panels[line, column]
            means = []
            for place, value in enumerate(values):
                found = [row[score] for row in rows if [axis, value] in row["places"] and score in row]
                if not found:
                    continue
                panel.scatter([place] * len(found), found, s=10, alpha=0.4, color="tab:blue", linewidths=0)
                mean, half = interval(found)
                panel.errorbar(place, mean, yerr=half, fmt="o", color="black", capsize=3, markersize=4)
                means.append((place, mean))
            if means:
                panel.plot(*zip(*means, strict=True), color="black", linewidth=0.8)
            panel.grid(axis="y", alpha=0.3)
            panel.set_xticks(range(len(values)), values if line == len(scores) - 1 else [], fontsize=7, rotation=30)
            panel.set_xlim(-0.5, len(values) - 0.5)
            if line == 0:
                panel.set_title(axis.replace("_", " "), fontsize=9)
            if column == 0:
                panel.set_ylabel(score.replace("_", " "), fontsize=8)
            panel.tick_params(axis="y", labelsize=7)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()

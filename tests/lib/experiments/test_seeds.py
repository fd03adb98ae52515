"""Clusters over seeds: three far groups are three clusters with every seed, and nothing else explains them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.preprocessing import normalize

from damage_atlas.experiments.seeds import SETTINGS, Described, cluster_with_seed, draw, subdivision, table_row


@pytest.fixture(scope="module")
def groups() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = np.eye(16)[:3].repeat(60, axis=0)
    return normalize(centres + rng.normal(0, 0.05, centres.shape)).astype(np.float32)


def test_three_groups_are_found_with_every_seed(groups: np.ndarray) -> None:
    classes = [name for name in ("crack", "crack", None) for _ in range(60)]
    photos: list[str | None] = [f"photo {row % 7}" for row in range(180)]
    runs = [cluster_with_seed(groups, SETTINGS["auto"], seed) for seed in range(2)]
    assert not np.allclose(runs[0].positions_N2, runs[1].positions_N2, atol=0.1), "each seed has a map of its own"
    row = table_row("a", "auto", groups, runs, Described(classes, {"photo": photos}))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:3] == ["a", "`auto`", "3 (3 to 3)"]
    # A point or two at a rim may be noise: maps of two processors differ.
    assert float(cells[3].rstrip("%")) < 3
    assert all(float(number) > 0.95 for number in re.findall(r"[\d.]+", cells[-1])), cells
    assert "photo 0.00" in cells[6] or "photo -0.0" in cells[6], cells
    assert subdivision(runs[0], classes) == {"crack": 2}, "the third cluster's images have no class"
    assert draw(runs[0], "a").startswith(b"\x89PNG")

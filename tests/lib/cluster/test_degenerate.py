"""Archives that are no archive yet: each ends in a sensible result, whatever the method."""

from __future__ import annotations

import numpy as np
import pytest

from damage_atlas.cluster import map_and_cluster
from damage_atlas.cluster.confidence import CONFIDENT, measure_confidence
from damage_atlas.cluster.landmarks import choose_landmarks
from damage_atlas.cluster.layout import OldMap
from damage_atlas.parts import map_in_threads
from damage_atlas.spec import ClusterSpec

CASES = ["0 points", "1 point", "9 points", "10 points", "all identical", "two far groups", "few", "one giant cluster"]
SPECS = [ClusterSpec.model_validate({"method": m, "resamples": 2}) for m in ("dbscan", "paper", "hdbscan", "kmeans")]


def vectors_of(case: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    axes = np.eye(16)
    vectors = {
        "0 points": np.zeros((0, 16)),
        "1 point": axes[:1],
        "9 points": rng.normal(size=(9, 16)),
        "10 points": rng.normal(size=(10, 16)),
        "all identical": np.repeat(axes[:1], 40, axis=0),
        "two far groups": np.repeat(np.stack([axes[0], -axes[0]]), 60, axis=0) + rng.normal(0, 0.02, (120, 16)),
        "few": rng.normal(size=(25, 16)),  # the perplexity of 30 is above their number
        "one giant cluster": axes[[0] * 300] + rng.normal(0, 0.03, (300, 16)),
    }[case]
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.method)
@pytest.mark.parametrize("case", CASES)
def test_degenerate_archives(case: str, spec: ClusterSpec) -> None:
    vectors = vectors_of(case)
    n = len(vectors)
    _, _, found = map_and_cluster(vectors, choose_landmarks(vectors, spec), spec, None)
    assert found.positions_N2.shape == (n, 2) and np.isfinite(found.positions_N2).all()
    assert len(found.labels_N) == len(found.roles) == n
    assert [role == "noise" for role in found.roles] == (found.labels_N < 0).tolist()
    sure = measure_confidence(vectors, found.near.ids_NK[:, :10], found.labels_N, [None] * n, spec, map_in_threads)
    assert len(sure.confidence_C) == found.labels_N.max(initial=-1) + 1
    assert ((sure.confidence_C >= 0) & (sure.confidence_C <= 1)).all()
    if case == "two far groups" and spec.method == "dbscan":
        assert len(set(found.labels_N[:60])) == len(set(found.labels_N[60:])) == 1
        assert found.labels_N[0] != found.labels_N[-1] and (sure.confidence_C >= CONFIDENT).all()
    if case == "all identical" and spec.method in ("dbscan", "paper"):
        assert (found.labels_N == 0).all()
    if case in ("1 point", "9 points") and spec.method == "dbscan":
        assert (found.labels_N == -1).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("earlier", [0, 5, 20])
def test_degenerate_archives_on_an_earlier_map(case: str, earlier: int) -> None:
    vectors = vectors_of(case)
    n = len(vectors)
    positions = np.full((n, 2), np.nan)
    positions[:earlier] = np.random.default_rng(1).normal(0, 10, (min(earlier, n), 2))
    old = OldMap(positions, landmark_N=~np.isnan(positions[:, 0]))
    _, _, found = map_and_cluster(vectors, np.arange(n), ClusterSpec(refit_above=1e9), old)
    assert found.positions_N2.shape == (n, 2) and np.isfinite(found.positions_N2).all()

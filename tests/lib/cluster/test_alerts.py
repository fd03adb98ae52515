"""Alerts: a dozen images of something new raise one hand, a quiet delivery none, and the chance is what it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from damage_atlas.cluster.alerts import Cluster, crowded_places, find_alerts
from damage_atlas.spec import ClusterSpec

SPEC = ClusterSpec()


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def draw(rng: np.random.Generator, n: int) -> np.ndarray:
    """Images of an archive with three kinds."""
    return unit(np.eye(16)[rng.integers(0, 3, n)] + rng.normal(0, 0.12, (n, 16)))


def kind_at(rng: np.random.Generator, axis: int, n: int, spread: float = 0.06) -> np.ndarray:
    return unit(np.eye(16)[axis] + rng.normal(0, spread, (n, 16)))


def delivery(old: np.ndarray, *new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A cumulative run's vectors, and which of them are new."""
    return np.concatenate([old, *new]), np.arange(len(old) + sum(map(len, new))) >= len(old)


def of_cluster(rows: np.ndarray, status: str, unknown: int, cluster_id: int = 9) -> Cluster:
    return Cluster(cluster_id, status, rows, unknown, map_artefact=False)


def test_quiet_deliveries_raise_no_hand() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        old = draw(rng, 400)
        vectors, is_new = delivery(old, draw(rng, 30))
        alarms += bool(find_alerts(vectors, is_new, old, [], 30, SPEC))
    assert alarms <= 2


def test_a_dozen_of_a_new_kind_is_one_alert_that_names_them() -> None:
    rng = np.random.default_rng(1)
    old = draw(rng, 400)
    vectors, is_new = delivery(old, draw(rng, 30), kind_at(rng, 5, 12))
    (alert,) = find_alerts(vectors, is_new, old, [], 42, SPEC)
    assert alert.kind == "group" and set(alert.rows.tolist()) == set(range(430, 442))
    # The same as a cluster of the map: still one alert, by the name of the cluster.
    cluster = of_cluster(np.arange(430, 442), "born", unknown=12)
    (alert,) = find_alerts(vectors, is_new, old, [cluster], 42, SPEC)
    assert (alert.kind, alert.cluster_id) == ("born", 9) and len(alert.rows) == 12 and alert.expected < 2


def test_two_new_kinds_are_two_alerts() -> None:
    rng = np.random.default_rng(2)
    old = draw(rng, 600)
    vectors, is_new = delivery(old, draw(rng, 30), kind_at(rng, 5, 12), kind_at(rng, 7, 12))
    found = find_alerts(vectors, is_new, old, [], 54, SPEC)
    groups = sorted(tuple(sorted(f.rows.tolist())) for f in found if f.kind == "group")
    assert groups == [tuple(range(630, 642)), tuple(range(642, 654))]


def test_a_cluster_that_reclustering_made_of_old_images_is_no_news() -> None:
    rng = np.random.default_rng(3)
    old = draw(rng, 400)
    vectors, is_new = delivery(old, draw(rng, 30))
    fragment = of_cluster(np.arange(20, 40), "born", unknown=20)  # noise before, nothing new among it
    mixed = of_cluster(np.r_[40:52, 400:403], "born", unknown=4)  # from other clusters, for the most part
    assert find_alerts(vectors, is_new, old, [fragment, mixed], 60, SPEC) == []


def test_growth_counts_new_images_alone() -> None:
    rng = np.random.default_rng(4)
    old = draw(rng, 400)
    spread = draw(rng, 40)
    vectors, is_new = delivery(old, spread)
    merged = of_cluster(np.arange(0, 200), "grown", unknown=0)  # has swallowed another cluster, brought by nobody
    assert find_alerts(vectors, is_new, old, [merged], 40, SPEC) == []
    grown = of_cluster(np.r_[0:40, 400:430], "grown", unknown=30)
    (alert,) = find_alerts(vectors, is_new, old, [grown], 40, SPEC)
    assert alert.kind == "growth" and alert.growth == pytest.approx(70 / 40)
    assert find_alerts(vectors, is_new, old, [grown], 40, ClusterSpec(alert_growth=2.0)) == []


def test_another_camera_is_drift() -> None:
    rng = np.random.default_rng(5)
    old = draw(rng, 400)
    moved = unit(draw(rng, 40) + 0.6 * np.eye(16)[9] + rng.normal(0, 0.25, (40, 16)))
    vectors, is_new = delivery(old, moved)
    assert "drift" in [f.kind for f in find_alerts(vectors, is_new, old, [], 40, SPEC)]


def test_the_score_is_the_binomial_tail() -> None:
    """Five identical new images, forty old ones elsewhere: around each lie the other four."""
    rng = np.random.default_rng(6)
    old = kind_at(rng, 0, 40)
    vectors, is_new = delivery(old, np.repeat(kind_at(rng, 5, 1), 5, axis=0))
    (place,) = crowded_places(vectors, np.flatnonzero(is_new), old, 1.0)
    assert place.score == pytest.approx(-np.log10(binom.sf(3, 4, 5 / 45)) - np.log10(5), rel=1e-6)
    assert sorted(place.rows.tolist()) == [40, 41, 42, 43, 44] and place.expected == pytest.approx(5 * 5 / 45)


@pytest.mark.parametrize(("old", "new"), [(0, 5), (5, 0), (1, 1), (2, 1), (1, 30), (0, 0)])
def test_few_images(old: int, new: int) -> None:
    rng = np.random.default_rng(7)
    before = draw(rng, old)
    vectors, is_new = delivery(before, draw(rng, new))
    assert find_alerts(vectors, is_new, before, [], new, SPEC) == []

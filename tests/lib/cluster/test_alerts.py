"""Alerts: a dozen images of something new raise one hand, a quiet delivery none, and the chance is what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from damage_atlas.cluster import alerts
from damage_atlas.cluster.alerts import Cluster, Earlier, Finding, Images, crowded_places, find_alerts
from damage_atlas.spec import ClusterSpec

SPEC = ClusterSpec()


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def draw(rng: np.random.Generator, n: int) -> np.ndarray:
    """Images of an archive with three kinds."""
    return unit(np.eye(16)[rng.integers(0, 3, n)] + rng.normal(0, 0.12, (n, 16)))


def kind_at(rng: np.random.Generator, axis: int, n: int, spread: float = 0.06) -> np.ndarray:
    return unit(np.eye(16)[axis] + rng.normal(0, spread, (n, 16)))


def delivery(old: np.ndarray, *new: np.ndarray, moments: list[int] | None = None) -> tuple[Images, Earlier]:
    """A cumulative run on top of a version in which all was clustered; each image shows a moment of its own."""
    vectors = np.concatenate([old, *new])
    is_new = np.arange(len(vectors)) >= len(old)
    moment = np.arange(len(vectors)) if moments is None else np.r_[np.arange(len(old)), moments]
    return Images(vectors, is_new, ~is_new, moment), Earlier(old, np.arange(len(old)))


def of_cluster(rows: np.ndarray, status: str) -> Cluster:
    return Cluster(9, status, rows, map_artefact=False)


def found_in(images: Images, earlier: Earlier, *clusters: Cluster, spec: ClusterSpec = SPEC) -> list[Finding]:
    return find_alerts(images, earlier, clusters, spec)


def test_quiet_deliveries_raise_no_hand() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        alarms += bool(found_in(*delivery(draw(rng, 400), draw(rng, 30))))
    assert alarms <= 2


def test_a_dozen_of_a_new_kind_is_one_alert_that_names_them() -> None:
    rng = np.random.default_rng(1)
    made = delivery(draw(rng, 400), draw(rng, 30), kind_at(rng, 5, 12))
    (alert,) = found_in(*made)
    assert alert.kind == "group" and set(alert.rows.tolist()) == set(range(430, 442)) and alert.moments == 12
    # The same as a cluster of the map: still one alert, by the name of the cluster.
    (alert,) = found_in(*made, of_cluster(np.arange(430, 442), "born"))
    assert (alert.kind, alert.cluster_id) == ("born", 9) and len(alert.rows) == 12 and alert.expected < 2


def test_two_new_kinds_are_two_alerts() -> None:
    rng = np.random.default_rng(2)
    found = found_in(*delivery(draw(rng, 600), draw(rng, 30), kind_at(rng, 5, 12), kind_at(rng, 7, 12)))
    groups = sorted(tuple(sorted(f.rows.tolist())) for f in found if f.kind == "group")
    assert groups == [tuple(range(630, 642)), tuple(range(642, 654))]


def test_many_images_of_one_moment_count_once() -> None:
    """Forty tiles of one photo of something new are one look; of twelve photos they are twelve."""
    rng = np.random.default_rng(8)
    old, quiet, tiles = draw(rng, 400), draw(rng, 60), kind_at(rng, 5, 48)
    numbers = list(range(1000, 1060))
    assert found_in(*delivery(old, quiet, tiles, moments=[*numbers, *([7000] * 48)])) == []
    (alert,) = found_in(*delivery(old, quiet, tiles, moments=[*numbers, *(7000 + k % 12 for k in range(48))]))
    assert set(range(460, 508)) >= set(alert.rows.tolist()) and len(alert.rows) >= 40 and alert.moments == 12


def test_a_cluster_that_reclustering_made_of_old_images_is_no_news() -> None:
    rng = np.random.default_rng(3)
    images, earlier = delivery(draw(rng, 400), draw(rng, 30))
    images.was_clustered_N[20:40] = False  # noise before, and nothing new among it
    fragment, mixed = of_cluster(np.arange(20, 40), "born"), of_cluster(np.r_[40:52, 400:403], "born")
    assert found_in(images, earlier, fragment, mixed) == []


def test_growth_counts_new_images_alone() -> None:
    rng = np.random.default_rng(4)
    made = delivery(draw(rng, 400), draw(rng, 40))
    assert found_in(*made, of_cluster(np.arange(0, 200), "grown")) == [], "it has swallowed another cluster"
    grown = replace(of_cluster(np.r_[0:40, 400:430], "grown"), before=40)
    (alert,) = found_in(*made, grown)
    assert alert.kind == "growth" and alert.growth == pytest.approx(70 / 40)
    assert found_in(*made, grown, spec=ClusterSpec(alert_growth=2.0)) == []
    assert found_in(*made, replace(grown, status="born", map_artefact=True, before=0)) == [], "it was not there before"


def test_a_window_that_rolls_on_does_not_grow() -> None:
    """Half of the images leave and as many of the same kinds come: no cluster has grown."""
    rng = np.random.default_rng(9)
    old, new = draw(rng, 400), draw(rng, 200)
    vectors = np.concatenate([old[200:], new])
    is_new = np.arange(400) >= 200
    images = Images(vectors, is_new, ~is_new, np.arange(200, 600))
    rows = np.flatnonzero(vectors.argmax(axis=1) == 0)
    rolled = Cluster(9, "kept", rows, map_artefact=False, before=int((old.argmax(axis=1) == 0).sum()))
    assert find_alerts(images, Earlier(old, np.arange(400)), [rolled], SPEC) == []


def test_many_new_images_are_looked_at_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    made = delivery(draw(rng, 200), draw(rng, 50), kind_at(rng, 5, 12), kind_at(rng, 7, 20))
    whole = crowded_places(*made, at_least=2.0)
    monkeypatch.setattr(alerts, "_ROWS_AT_ONCE", 7)
    for one, other in zip(whole, crowded_places(*made, at_least=2.0), strict=True):
        assert one.rows.tolist() == other.rows.tolist() and (one.score, one.expected) == (other.score, other.expected)
    assert len(whole) == 2


def test_another_camera_is_drift() -> None:
    rng = np.random.default_rng(5)
    moved = unit(draw(rng, 40) + 0.6 * np.eye(16)[9] + rng.normal(0, 0.25, (40, 16)))
    assert "drift" in [f.kind for f in found_in(*delivery(draw(rng, 400), moved))]


def test_the_score_is_the_binomial_tail() -> None:
    """Five identical new images, forty old ones elsewhere: around each lie the other four."""
    rng = np.random.default_rng(6)
    made = delivery(kind_at(rng, 0, 40), np.repeat(kind_at(rng, 5, 1), 5, axis=0))
    (place,) = crowded_places(*made, at_least=1.0)
    assert place.score == pytest.approx(-np.log10(binom.sf(3, 4, 5 / 45)) - np.log10(5), rel=1e-6)
    assert sorted(place.rows.tolist()) == [40, 41, 42, 43, 44] and place.expected == pytest.approx(5 * 5 / 45)


@pytest.mark.parametrize(("old", "new"), [(0, 5), (5, 0), (1, 1), (2, 1), (1, 30), (0, 0)])
def test_few_images(old: int, new: int) -> None:
    rng = np.random.default_rng(7)
    assert found_in(*delivery(draw(rng, old), draw(rng, new))) == []

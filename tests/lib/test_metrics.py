"""Scores against their definitions, and where they are not defined."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from damage_atlas import metrics
from damage_atlas.metrics import (
    agreement,
    auprc,
    class_recalls,
    damage_scores,
    interval_by_group,
    knn_accuracy,
    knn_predict,
    linear_accuracy,
    mean_cosines,
    recall_at_specificity,
    retrieval_scores,
)


def unit(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, 4))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_knn_is_a_vote_whose_ties_the_nearer_side_wins() -> None:
    reference, labels, queries = unit(40, 0), ["a", "b", "c", "b"] * 10, unit(25, 1)
    predicted = knn_predict(reference, labels, queries, k=5)
    for q, query in enumerate(queries):
        near = sorted(range(40), key=lambda i: -float(reference[i] @ query))[:5]
        votes = Counter(labels[i] for i in near)
        nearness = {name: sum(float(reference[i] @ query) for i in near if labels[i] == name) for name in votes}
        assert predicted[q] == max(votes, key=lambda name: (votes[name], nearness[name]))


def test_without_reference_or_queries_there_is_no_accuracy() -> None:
    assert math.isnan(knn_accuracy(unit(3, 0), ["a"] * 3, unit(0, 1), []))
    assert math.isnan(knn_accuracy(unit(0, 0), [], unit(2, 1), ["a", "b"]))
    assert knn_predict(unit(0, 0), [], unit(2, 1)).tolist() == ["", ""]
    assert knn_accuracy(unit(3, 0), ["a"] * 3, unit(2, 1), ["a", "b"]) == 0.5


def test_recall_at_specificity_is_the_best_threshold_of_all() -> None:
    rng = np.random.default_rng(2)
    damaged = rng.random(200) < 0.3
    scores = rng.normal(size=200) + damaged
    best = 0.0
    for threshold in np.append(scores, np.inf):
        flagged = scores >= threshold
        if (~flagged[~damaged]).mean() >= 0.95:
            best = max(best, flagged[damaged].mean())
    assert recall_at_specificity(damaged, scores) == pytest.approx(best)


@pytest.mark.parametrize("damaged", [np.ones(4, bool), np.zeros(4, bool)])
def test_one_sided_truth_has_no_score(damaged: np.ndarray) -> None:
    assert math.isnan(recall_at_specificity(damaged, np.arange(4.0)))
    assert math.isnan(auprc(damaged, np.arange(4.0)))


def test_damage_scores_are_differences_of_mean_similarity() -> None:
    reference, damaged, queries = unit(30, 3), np.arange(30) % 3 == 0, unit(6, 4)
    scores = damage_scores(reference, damaged, queries, k=2)
    for q, query in enumerate(queries):
        sides = [np.sort(reference[rows] @ query)[-2:].mean() for rows in (damaged, ~damaged)]
        assert scores[q] == pytest.approx(sides[0] - sides[1], abs=1e-6)


def test_agreement_takes_noise_for_a_group_and_any_kind_of_name() -> None:
    assert agreement(["a", "a", "b", "b"], [1, 1, None, None]) == {"ari": 1.0, "nmi": 1.0}
    assert agreement(["a", "b", "a", "b"], [1, 1, 1, 1])["ari"] == 0.0


@pytest.mark.parametrize("at_once", [512, 7])
def test_retrieval_is_counted_query_by_query(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_QUERIES_AT_ONCE", at_once)
    labels, truth = ["a"] * 12 + ["b"] * 5 + ["c"] * 3, ["a", "b", "c", "d"] * 5
    reference, queries = unit(20, 0), unit(20, 1)
    ones, tens, precisions = [], [], []
    for query, name in zip(queries, truth, strict=True):
        if name not in labels:
            continue
        hits = [labels[i] == name for i in sorted(range(20), key=lambda i: -float(reference[i] @ query))]
        r = labels.count(name)
        ones.append(hits[0])
        tens.append(any(hits[:10]))
        precisions.append(sum(sum(hits[: i + 1]) / (i + 1) for i in range(r) if hits[i]) / r)
    found = retrieval_scores(reference, labels, queries, truth)
    wanted = {"recall_at_1": np.mean(ones), "recall_at_10": np.mean(tens), "map_at_r": np.mean(precisions)}
    assert found == pytest.approx(wanted)


def test_retrieval_of_classes_that_are_nowhere_has_no_score() -> None:
    assert all(math.isnan(score) for score in retrieval_scores(unit(3, 0), ["a"] * 3, unit(2, 1), ["b", "b"]).values())
    assert all(math.isnan(score) for score in retrieval_scores(unit(3, 0), ["a"] * 3, unit(0, 1), []).values())


def test_a_linear_classifier_parts_what_a_plane_parts() -> None:
    reference, queries = unit(200, 0), unit(50, 1)
    labels, truth = (["up" if v[0] > 0 else "down" for v in vectors] for vectors in (reference, queries))
    assert linear_accuracy(reference, labels, queries, truth) > 0.9
    assert math.isnan(linear_accuracy(reference, ["up"] * 200, queries, truth))
    assert math.isnan(linear_accuracy(reference, labels, queries[:0], []))


def test_recall_of_each_class() -> None:
    assert class_recalls(["a", "a", "b", "c"], ["a", "b", "b", "x"]) == {"a": 0.5, "b": 1.0, "c": 0.0}


def test_labels_that_half_of_the_neighbours_carry() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0] * 10 + [1] * 10]
    sets = [
        *([frozenset({"RB"})] * 5),
        *([frozenset({"RB", "FS"})] * 5),
        *([frozenset()] * 6),
        *([frozenset({"OB"})] * 4),
    ]
    found = metrics.knn_label_sets(vectors, sets, np.eye(4, dtype=np.float32)[:2])
    assert found == [frozenset({"RB", "FS"}), frozenset()]
    assert metrics.knn_label_sets(vectors, [frozenset()] * 20, vectors[:2]) == [frozenset()] * 2


def test_sewer_ml_scores_are_those_of_its_paper() -> None:
    """F2 and F1 from counts: RB 1 hit, 1 miss; FS 1 hit; normal 2 hits, 1 false alarm."""
    truth = [frozenset(x) for x in (["RB"], ["RB", "FS"], [], [], ["OB"])]
    said = [frozenset(x) for x in (["RB"], ["FS"], [], [], [])]
    said[4] = frozenset()
    scores = metrics.sewer_ml_scores(truth, said)
    f2_rb, f2_fs = 5 * 1 / (5 * 1 + 4 * 1 + 0), 1.0
    assert scores["f2_ciw"] == pytest.approx((1.0 * f2_rb + 0.6419 * f2_fs) / sum(metrics.SEWER_ML_IMPORTANCE.values()))
    assert scores["f1_normal"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert metrics.sewer_ml_scores(truth, truth)["f1_normal"] == 1.0
    by_label = metrics.label_scores(truth, said)
    assert by_label == {
        "label_f1:FS": 1.0, "label_f1:OB": 0.0, "label_f1:RB": pytest.approx(2 / 3), "label_f1": pytest.approx(5 / 9),
    }  # fmt: skip


def test_an_interval_by_group_is_that_of_as_many_trials_as_there_are_groups() -> None:
    rng = np.random.default_rng(0)
    by_photo = np.repeat(rng.random(40) < 0.7, 25).astype(float)
    photos = np.repeat([f"photo {n}" for n in range(40)], 25).tolist()
    low, high = interval_by_group(by_photo, photos)
    half = 1.96 * by_photo.std() / 40**0.5
    assert low < by_photo.mean() < high and np.isclose((high - low) / 2, half, rtol=0.1)
    alone_low, alone_high = interval_by_group(by_photo, [str(n) for n in range(1000)])
    assert np.isclose((alone_high - alone_low) / 2, half / 5, rtol=0.1), "as if tiles were trials"
    assert np.isnan(interval_by_group(np.ones(3), ["a"] * 3)).all()
    assert interval_by_group(np.ones(4), ["a", "a", "b", "c"]) == (1, 1)


def test_mean_cosines_against_all_pairs() -> None:
    vectors = np.random.default_rng(1).normal(size=(30, 5))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    labels = [f"class {n % 4}" for n in range(30)]
    pairs = [(labels[a] == labels[b], vectors[a] @ vectors[b]) for a in range(30) for b in range(30) if a != b]
    wanted = [np.mean([cosine for same, cosine in pairs if same == asked]) for asked in (True, False)]
    assert np.allclose(mean_cosines(vectors, labels), wanted, atol=1e-6)
    assert np.isnan(mean_cosines(vectors[:3], ["a", "b", "c"])[0]) and np.isnan(mean_cosines(vectors, ["a"] * 30)[1])

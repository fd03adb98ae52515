"""Which scores a model version carries."""

from __future__ import annotations

import numpy as np
import pytest

from damage_atlas.images import Source
from damage_atlas.train.data import LabelledImages
from damage_atlas.train.evaluate import held_out_scores


def images(labels: list[str], splits: list[str]) -> LabelledImages:
    n = len(labels)
    return LabelledImages([f"{i:02d}" for i in range(n)], [Source("f")] * n, labels, splits)


def vectors(labels: list[str]) -> np.ndarray:
    """A corner for each class."""
    names = sorted(set(labels))
    return np.eye(len(names) + 1, dtype=np.float32)[[names.index(label) for label in labels]]


def test_a_perfect_embedding_scores_perfectly() -> None:
    labels = ["crack", "sound", "rust"] * 8
    scores = held_out_scores(images(labels, ["train"] * 18 + ["test"] * 6), vectors(labels))
    assert scores.pop("damage_share") == pytest.approx(2 / 3) and scores.pop("negative_cosine") == 0
    assert set(scores) == {
        "knn_accuracy", "knn_accuracy_low", "knn_accuracy_high", "positive_cosine",
        "linear_accuracy", "recall_at_1", "recall_at_10", "map_at_r", "recall:crack", "recall:rust",
        "recall:sound", "damage_recall_at_95_specificity", "damage_auprc",
    }  # fmt: skip
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))


def test_scores_that_are_not_defined_are_left_out() -> None:
    """A model card holds finite numbers only."""
    labels = ["crack", "sound"] * 6 + ["crack", "crack"]
    scores = held_out_scores(images(labels, ["train"] * 12 + ["test"] * 2), vectors(labels))
    assert scores["knn_accuracy"] == 1 and "damage_auprc" not in scores and np.isfinite(list(scores.values())).all()


def test_without_held_out_images_there_are_no_scores() -> None:
    assert held_out_scores(images(["a", "b"] * 3, ["train"] * 6), vectors(["a", "b"] * 3)) == {}


def test_classes_that_were_not_trained_on_count_as_mistakes() -> None:
    labels = ["a", "a", "b", "b", "new"]
    scores = held_out_scores(images(labels, ["train"] * 4 + ["test"]), vectors(labels))
    assert scores["knn_accuracy"] == scores["recall:new"] == 0 and "map_at_r" not in scores

"""Scores of an embedding on the held-out split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from damage_atlas.labels import SEWER_ML_IMPORTANCE, is_undamaged
from damage_atlas.metrics import (
    auprc,
    class_recalls,
    damage_scores,
    interval_by_group,
    knn_accuracy,
    knn_label_sets,
    knn_predict,
    label_scores,
    linear_accuracy,
    mean_cosines,
    recall_at_specificity,
    retrieval_scores,
    sewer_ml_scores,
)
from damage_atlas.network import EmbeddingNet, embed_pixels, fixed_threads, resolve_precision
from damage_atlas.spec import TrainSpec
from damage_atlas.train.data import LabelledImages, Pixels

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_QUICK_IMAGES = 1000  # of each split: what an evaluation in mid-training looks at
_ROWS_AT_ONCE = 512


def embed_rows(network: EmbeddingNet, pixels: Pixels, rows: Ints, spec: TrainSpec) -> Floats:
    """Embeddings of ``rows`` as the embed stage would make them: len(rows) x D."""
    dtype = resolve_precision(spec.precision, next(network.parameters()).device)
    with fixed_threads(spec.threads_per_shard):
        parts = [
            embed_pixels(network, pixels[rows[start : start + _ROWS_AT_ONCE]], 64, dtype)
            for start in range(0, len(rows), _ROWS_AT_ONCE)
        ]
    return np.concatenate(parts) if parts else np.empty((0, network.embedding_size), np.float32)


def quick_knn_accuracy(network: EmbeddingNet, pixels: Pixels, images: LabelledImages, spec: TrainSpec) -> float:
    """kNN accuracy, training images to held-out ones, on a fixed sample of each; NaN without held-out images."""
    rng = np.random.default_rng(spec.seed)
    reference = rng.permutation(images.training_rows)[:_QUICK_IMAGES]
    queries = rng.permutation(images.rows_of("test"))[:_QUICK_IMAGES]
    network.eval()
    return knn_accuracy(
        embed_rows(network, pixels, reference, spec),
        [images.labels[i] for i in reference],
        embed_rows(network, pixels, queries, spec),
        [images.labels[i] for i in queries],
    )


def held_out_scores(images: LabelledImages, vectors_ND: Floats) -> dict[str, float]:
    """Scores on the held-out split, from all of both splits; without one, an empty dict.

    Where images carry several labels, ``label_f1`` and ``label_f1:NAME`` are those of each label by itself; of
    Sewer-ML's codes its own ``f2_ciw`` and ``f1_normal`` as well. ``recall:CLASS`` is that of the kNN prediction.
    ``damage_recall_at_95_specificity`` and ``damage_auprc`` are of damage against sound, where a class says that it is
    sound. ``knn_accuracy_low`` and ``_high`` are the ends of its 95% interval over groups (photos); the cosines are
    means over pairs of held-out images, of one class and of different ones. A score that is not defined, as of damage
    where all that is held out is damaged, is left out.
    """
    train, test = images.training_rows, images.rows_of("test")
    if len(test) == 0:
        return {}
    truth = [images.labels[i] for i in test]
    both = vectors_ND[train], images.training_labels, vectors_ND[test]
    predicted = knn_predict(*both)
    right = (predicted == np.asarray(truth)).astype(np.float64)
    groups = images.groups or images.image_ids
    low, high = interval_by_group(right, [groups[i] for i in test])
    positive, negative = mean_cosines(vectors_ND[test], truth)
    scores = {
        "knn_accuracy": float(right.mean()),
        "knn_accuracy_low": low,
        "knn_accuracy_high": high,
        "positive_cosine": positive,
        "negative_cosine": negative,
        "linear_accuracy": linear_accuracy(*both, truth),
        **retrieval_scores(*both, truth),
        **{f"recall:{name}": recall for name, recall in class_recalls(truth, predicted.tolist()).items()},
    }
    scores |= _scores_by_label(images, vectors_ND)
    damaged = np.array([not is_undamaged(label) for label in images.labels])
    if 0 < damaged[train].sum() < len(train):
        damage = damage_scores(vectors_ND[train], damaged[train], vectors_ND[test])
        scores["damage_recall_at_95_specificity"] = recall_at_specificity(damaged[test], damage)
        scores["damage_auprc"] = auprc(damaged[test], damage)
        scores["damage_share"] = float(damaged[test].mean())
    return {name: score for name, score in scores.items() if not np.isnan(score)}


def _scores_by_label(images: LabelledImages, vectors_ND: Floats) -> dict[str, float]:
    sets = [frozenset(label.split("+")) for label in images.labels]
    names = frozenset().union(*sets)
    codes = names & SEWER_ML_IMPORTANCE.keys()
    of_sewer_ml = bool(codes) and all(is_undamaged(name) for name in names - codes)
    if not of_sewer_ml and all(len(labels) == 1 for labels in sets):
        return {}
    train, test = images.training_rows, images.rows_of("test")
    predicted = knn_label_sets(vectors_ND[train], [sets[row] for row in train], vectors_ND[test])
    truth = [sets[row] for row in test]
    scores = label_scores(truth, predicted)
    if of_sewer_ml:
        scores |= sewer_ml_scores([labels & codes for labels in truth], [labels & codes for labels in predicted])
    return scores

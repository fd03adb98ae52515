"""Scores of embeddings and clusters. Libraries where there is one; axes as in neighbours.py."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, average_precision_score, normalized_mutual_info_score, roc_curve

from damage_atlas.neighbours import Floats, exact_neighbours

Strings = NDArray[np.str_]

# Words that, in a class name, say that nothing is wrong. The report states which classes were taken so.
_UNDAMAGED = re.compile(
    r"(^|[^a-z])(sound|intact|normal|undamaged|uncracked|healthy|clean|background|none|ok|good|no|non|not)([^a-z]|$)",
    re.IGNORECASE,
)


def knn_predict(reference_ND: Floats, labels_N: Sequence[str], queries_QD: Floats, k: int = 10) -> Strings:
    """Labels by majority of the ``k`` nearest reference vectors; ties go to the larger sum of similarities."""
    labels = np.asarray(labels_N, dtype=str)
    if len(labels) == 0 or len(queries_QD) == 0:
        return np.full(len(queries_QD), "", dtype=labels.dtype if len(labels) else "<U1")
    names, codes = np.unique(labels, return_inverse=True)
    near = exact_neighbours(reference_ND, k, queries_QD)
    votes = np.zeros((len(queries_QD), len(names)))
    rows = np.repeat(np.arange(len(queries_QD)), near.ids_NK.shape[1])
    # A vote weighs 1; the similarity (at most 1) only breaks ties among at most k votes.
    np.add.at(votes, (rows, codes[near.ids_NK].ravel()), 1 + near.similarities_NK.ravel() / (10 * k))
    return names[votes.argmax(axis=1)]


def knn_accuracy(
    reference_ND: Floats, labels_N: Sequence[str], queries_QD: Floats, truth_Q: Sequence[str], k: int = 10
) -> float:
    """Share of queries whose predicted label is right; NaN without queries."""
    if len(truth_Q) == 0 or len(labels_N) == 0:
        return float("nan")
    return float((knn_predict(reference_ND, labels_N, queries_QD, k) == np.asarray(truth_Q, dtype=str)).mean())


def damage_scores(
    reference_ND: Floats, damaged_N: NDArray[np.bool_], queries_QD: Floats, k: int = 10
) -> NDArray[np.float64]:
    """Mean cosine to the ``k`` nearest damaged reference images less that to the ``k`` nearest sound ones.

    A difference of means, not a share of votes: shares tie at 0 and 1, where a threshold cannot part them.
    """
    near = [exact_neighbours(reference_ND[rows], k, queries_QD).similarities_NK for rows in (damaged_N, ~damaged_N)]
    return np.asarray(near[0].mean(axis=1, dtype=np.float64) - near[1].mean(axis=1, dtype=np.float64))


def recall_at_specificity(damaged: NDArray[np.bool_], scores: NDArray[np.float64], specificity: float = 0.95) -> float:
    """Largest recall of damage among thresholds whose specificity is at least ``specificity``."""
    if damaged.all() or not damaged.any():
        return float("nan")
    false_positive_rate, true_positive_rate, _ = roc_curve(damaged, scores, drop_intermediate=False)
    return float(true_positive_rate[false_positive_rate <= 1 - specificity].max())


def auprc(damaged: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Area under the precision-recall curve (average precision)."""
    if damaged.all() or not damaged.any():
        return float("nan")
    return float(average_precision_score(damaged, scores))


def agreement(truth: Sequence[object], found: Sequence[object]) -> dict[str, float]:
    """ARI and NMI of two partitions; noise counts as one group of its own."""
    return {
        "ari": float(adjusted_rand_score(list(map(str, truth)), list(map(str, found)))),
        "nmi": float(normalized_mutual_info_score(list(map(str, truth)), list(map(str, found)))),
    }


def is_undamaged(label: str) -> bool:
    """Whether a class name says that nothing is wrong (``sound``, ``deck_non_crack``, ``normal``)."""
    return _UNDAMAGED.search(label.replace("_", " ")) is not None

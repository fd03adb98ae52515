"""Scores of embeddings and clusters. Libraries where there is one; axes as in neighbours.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    adjusted_rand_score,
    average_precision_score,
    f1_score,
    fbeta_score,
    normalized_mutual_info_score,
    recall_score,
    roc_curve,
)

from damage_atlas.labels import SEWER_ML_IMPORTANCE
from damage_atlas.neighbours import Floats, exact_neighbours

Strings = NDArray[np.str_]

_QUERIES_AT_ONCE = 512
_BOOTSTRAPS = 2000


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


def knn_label_sets(
    reference_ND: Floats, sets_N: Sequence[frozenset[str]], queries_QD: Floats, k: int = 10
) -> list[frozenset[str]]:
    """For each query the labels that at least half of its ``k`` nearest reference images carry; perhaps none."""
    names = sorted(frozenset().union(*sets_N))
    if not names:
        return [frozenset()] * len(queries_QD)
    carries_NL = np.array([[name in labels for name in names] for labels in sets_N], dtype=bool)
    near = exact_neighbours(reference_ND, k, queries_QD).ids_NK
    share_QL = carries_NL[near].mean(axis=1)
    return [frozenset(name for name, part in zip(names, row, strict=True) if part >= 0.5) for row in share_QL]


def label_scores(truth: Sequence[frozenset[str]], predicted: Sequence[frozenset[str]]) -> dict[str, float]:
    """F1 of each label that an image may carry beside others, and their mean: ``label_f1:NAME``, ``label_f1``."""
    each = _f_scores(truth, predicted, sorted(frozenset().union(*truth)), beta=1)
    return {f"label_f1:{name}": score for name, score in each.items()} | {"label_f1": float(np.mean([*each.values()]))}


def sewer_ml_scores(truth: Sequence[frozenset[str]], predicted: Sequence[frozenset[str]]) -> dict[str, float]:
    """What Sewer-ML is compared by (Haurum and Moeslund 2021, section 4.2); of images without a code: the empty set.

    ``f2_ciw``: F2 of each code, weighted by its class importance. ``f1_normal``: F1 of images without any code.
    """
    weights = SEWER_ML_IMPORTANCE
    each = _f_scores(truth, predicted, list(weights), beta=2)
    normal = f1_score([not labels for labels in truth], [not labels for labels in predicted], zero_division=0.0)
    weighted = sum(weights[code] * score for code, score in each.items()) / sum(weights.values())
    return {"f2_ciw": float(weighted), "f1_normal": float(normal)}


def _f_scores(
    truth: Sequence[frozenset[str]], predicted: Sequence[frozenset[str]], names: Sequence[str], beta: float
) -> dict[str, float]:
    return {
        name: float(
            fbeta_score([name in t for t in truth], [name in p for p in predicted], beta=beta, zero_division=0.0)
        )
        for name in names
    }


def linear_accuracy(reference_ND: Floats, labels_N: Sequence[str], queries_QD: Floats, truth_Q: Sequence[str]) -> float:
    """Share of queries that a logistic regression on the reference labels right; NaN without queries or a choice."""
    if len(truth_Q) == 0 or len(set(labels_N)) < 2:
        return float("nan")
    classifier = LogisticRegression(max_iter=1000).fit(reference_ND, np.asarray(labels_N, dtype=str))
    return float(classifier.score(queries_QD, np.asarray(truth_Q, dtype=str)))


def class_recalls(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """For each class of the truth, the share of its images that were predicted as such."""
    names = sorted(set(truth))
    recalls = recall_score(list(truth), list(predicted), labels=names, average=None)
    return dict(zip(names, recalls.tolist(), strict=True))


def retrieval_scores(
    reference_ND: Floats, labels_N: Sequence[str], queries_QD: Floats, truth_Q: Sequence[str]
) -> dict[str, float]:
    """What a search finds, each query among the reference images.

    ``recall_at_1`` and ``recall_at_10``: share of queries with an image of their class among the nearest 1 or 10.
    ``map_at_r``: with R reference images of the query's class, mean over the nearest R of the precision at each hit
    (Musgrave et al. 2020, arXiv:2003.08505). Queries of a class without reference images are left out; NaN if all are.
    """
    # Not by pytorch-metric-learning's AccuracyCalculator: importing it puts other methods into FAISS's classes, for the
    # whole process, which do not know the parameters that search needs.
    names, codes_N, sizes = np.unique(np.asarray(labels_N, dtype=str), return_inverse=True, return_counts=True)
    truth = np.asarray(truth_Q, dtype=str)
    known = np.flatnonzero(np.isin(truth, names))
    totals = {"recall_at_1": 0.0, "recall_at_10": 0.0, "map_at_r": 0.0}
    if len(known) == 0:
        return dict.fromkeys(totals, float("nan"))
    # A few at a time: R is a class's size, and R neighbours of every query may not fit into memory.
    for rows in np.array_split(known, -(-len(known) // _QUERIES_AT_ONCE)):
        codes_Q = np.searchsorted(names, truth[rows])
        sizes_Q = sizes[codes_Q]
        near = exact_neighbours(reference_ND, max(int(sizes_Q.max()), 10), queries_QD[rows]).ids_NK
        hits_QK = codes_N[near] == codes_Q[:, None]
        places_K = np.arange(1, hits_QK.shape[1] + 1)
        precisions_QK = np.cumsum(hits_QK, axis=1) / places_K
        counted_QK = hits_QK & (places_K <= sizes_Q[:, None])
        totals["recall_at_1"] += float(hits_QK[:, 0].sum())
        totals["recall_at_10"] += float(hits_QK[:, :10].any(axis=1).sum())
        totals["map_at_r"] += float(((precisions_QK * counted_QK).sum(axis=1) / sizes_Q).sum())
    return {name: total / len(known) for name, total in totals.items()}


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


def interval_by_group(values_Q: NDArray[np.floating], groups_Q: Sequence[str]) -> tuple[float, float]:
    """Ends of the 95% interval of the values' mean, by a bootstrap that draws groups; NaN with fewer than two of them.

    Tiles of one photo are no independent trials (Field and Welsh 2007, the cluster bootstrap).
    """
    _, codes = np.unique(np.asarray(groups_Q), return_inverse=True)
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        return float("nan"), float("nan")
    sums = np.bincount(codes, values_Q)
    draw, means = np.random.default_rng(0), np.empty(_BOOTSTRAPS)
    for n in range(_BOOTSTRAPS):  # one at a time: of a large archive all draws at once would not fit into memory
        drawn = draw.integers(0, len(sizes), len(sizes))
        means[n] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mean_cosines(vectors_ND: Floats, labels_N: Sequence[str]) -> tuple[float, float]:
    """Mean cosine of unit vectors over pairs of one class, and of different ones; NaN where there are none."""
    _, codes = np.unique(np.asarray(labels_N), return_inverse=True)
    sizes, n = np.bincount(codes).astype(float), len(codes)
    sums_CD = np.zeros((len(sizes), vectors_ND.shape[1]))
    np.add.at(sums_CD, codes, vectors_ND)
    same, everyone = float((sums_CD**2).sum()), float((sums_CD.sum(axis=0) ** 2).sum())
    own = float((vectors_ND.astype(np.float64) ** 2).sum())
    alike, different = float((sizes**2).sum()) - n, n**2 - float((sizes**2).sum())
    return (same - own) / alike if alike else float("nan"), (everyone - same) / different if different else float("nan")

"""What raises a hand: places where new images crowd, clusters that are born or grow, deliveries that drift.

One measure for all: how unlikely so many new images would be if they came from where the archive's images come from.
M new images, P of the previous version, D dimensions, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import binom

from damage_atlas.neighbours import Floats, Ints, exact_neighbours
from damage_atlas.spec import ClusterSpec

_LARGEST_BALL = 24  # images around a new one that are looked at
_MOSTLY = 0.5  # of a candidate's images: what makes it another alert's
_BORN_NEW_SHARE, _BORN_LEAST = 0.2, 3  # of a born cluster's images that no version had: else it is old noise
_BORN_UNKNOWN_SHARE = 0.8  # of a born cluster's images that were in no cluster before
_FAR_QUANTILE = 0.95
_FAR_SAMPLE = 2000  # images of the previous version among which "far" is measured

Kind = Literal["born", "growth", "group", "drift"]


@dataclass(frozen=True)
class Cluster:
    """What is asked of one cluster of this run.

    Attributes:
        rows: its images.
        unknown: how many of them were in no cluster of the previous version: noise there, or not there at all.
    """

    cluster_id: int
    status: str
    rows: Ints
    unknown: int
    map_artefact: bool


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        rows: the new images that it is about, rows of the run's images.
        expected: as many would lie there by chance.
        score: -log10 of the chance that so many do, all places that were looked at counted in.
        growth: size with the new images / size without them; of a cluster.
    """

    kind: Kind
    cluster_id: int | None
    rows: Ints
    expected: float
    score: float
    growth: float | None = None


def find_alerts(
    vectors_ND: Floats, is_new_N: NDArray[np.bool_], old_PD: Floats, clusters: Sequence[Cluster], unknown: int,
    spec: ClusterSpec,
) -> list[Finding]:  # fmt: skip
    """All that passes the limits of ``spec``, each image in one finding as a rule, the strongest first.

    Args:
        is_new_N: which of the run's images the previous version did not hold.
        old_PD: vectors of that version's images, by the same model.
        unknown: images of this run that were in no cluster of the previous version, new ones included.
    """
    new = np.flatnonzero(is_new_N)
    if len(new) == 0 or len(old_PD) == 0:
        return []
    n = len(vectors_ND)
    share, unknown_share = len(new) / (len(new) + len(old_PD)), unknown / max(n, 1)
    found: list[Finding] = []
    looked_at = max(len(clusters), 1)
    for cluster in clusters:
        rows = cluster.rows[is_new_N[cluster.rows]]
        size, fresh = len(cluster.rows), len(rows)
        if cluster.status == "born" and not cluster.map_artefact:
            enough = fresh >= max(_BORN_LEAST, _BORN_NEW_SHARE * size)
            score = _score(cluster.unknown, size, unknown_share, looked_at)
            if enough and cluster.unknown >= _BORN_UNKNOWN_SHARE * size and score >= spec.alert_score:
                found.append(Finding("born", cluster.cluster_id, rows, size * share, score))
        elif 0 < fresh < size and size / (size - fresh) >= spec.alert_growth:
            score = _score(fresh, size, share, looked_at)
            if score >= spec.alert_score:
                found.append(
                    Finding("growth", cluster.cluster_id, rows, size * share, score, growth=size / (size - fresh))
                )
    order = {"born": 0, "growth": 1}
    candidates = sorted(found, key=lambda f: (order[f.kind], -f.score, f.cluster_id or 0))
    candidates += crowded_places(vectors_ND, new, old_PD, spec.alert_score)
    kept: list[Finding] = []
    told = np.zeros(n, bool)
    for finding in candidates:
        if told[finding.rows].mean() < _MOSTLY:
            kept.append(finding)
            told[finding.rows] = True
    # A new kind in it does not make a delivery unlike the archive; what holds most of the delivery does.
    for finding in kept:
        if len(finding.rows) > _MOSTLY * len(new):
            told[finding.rows] = False
    kept += _drift(vectors_ND, new[~told[new]], old_PD, spec)
    return sorted(kept, key=lambda f: -f.score)


def crowded_places(vectors_ND: Floats, new_M: Ints, old_PD: Floats, at_least: float) -> list[Finding]:
    """Places where new images lie closer together than chance puts them there.

    Around each new image balls of its 1 to 24 nearest images, new and old ones, are looked at; of the new ones among
    them the binomial tail is taken, and of all balls and images the least: a scan statistic (Kulldorff 1997) over
    nearest neighbours (Schilling 1986). Balls that pass ``at_least`` and share images are one place.
    """
    m = len(new_M)
    pool = np.concatenate([vectors_ND[new_M], old_PD])
    near = exact_neighbours(pool, _LARGEST_BALL + 1, vectors_ND[new_M]).ids_NK
    width = near.shape[1] - 1
    if width < 1:
        return []
    own = near == np.arange(m)[:, None]
    own[~own.any(axis=1), width] = True  # of identical images, one's own row may be missing
    near = near[~own].reshape(m, width)
    is_new = near < m
    counts = np.cumsum(is_new, axis=1)
    sizes = np.arange(1, width + 1)
    scores = -binom.logsf(counts - 1, sizes, m / len(pool)) / np.log(10) - np.log10(m)
    best = scores.max(axis=1)
    # The smallest ball that passes: a larger one may pass by more, and take in what does not belong there.
    ball = (scores >= at_least).argmax(axis=1)
    seeds = np.flatnonzero(best >= at_least)
    if len(seeds) == 0:
        return []
    inside = np.arange(width) <= ball[seeds][:, None]
    from_seed, column = np.nonzero(inside & is_new[seeds])
    pairs = (np.ones(len(from_seed)), (seeds[from_seed], near[seeds][from_seed, column]))
    _, place = connected_components(csr_matrix(pairs, shape=(m, m)), directed=False)
    found = []
    for name in np.unique(place[seeds]):
        members = np.flatnonzero(place == name)
        here = place[seeds] == name
        there = np.union1d(seeds[here], near[seeds[here]][inside[here]])
        expected = len(there) * m / len(pool)
        found.append(Finding("group", None, new_M[members], expected, float(best[seeds[here]].max())))
    return sorted(found, key=lambda f: -f.score)


def _drift(vectors_ND: Floats, new_M: Ints, old_PD: Floats, spec: ClusterSpec) -> list[Finding]:
    """The delivery as a whole: how many new images lie farther from the old ones than those do from each other."""
    if len(old_PD) < 2 or len(new_M) == 0:
        return []
    rows = np.random.default_rng(0).permutation(len(old_PD))[:_FAR_SAMPLE]
    among = 1 - exact_neighbours(old_PD, 2, old_PD[rows]).similarities_NK[:, 1]
    away = 1 - exact_neighbours(old_PD, 1, vectors_ND[new_M]).similarities_NK[:, 0]
    far = away > np.quantile(among, _FAR_QUANTILE)
    score = _score(int(far.sum()), len(far), 1 - _FAR_QUANTILE, 1)
    if far.mean() < spec.alert_drift or score < spec.alert_score:
        return []
    return [Finding("drift", None, new_M[far], float((1 - _FAR_QUANTILE) * len(far)), score)]


def _score(count: int, size: int, share: float, looked_at: int) -> float:
    """-log10 of the chance of ``count`` or more of ``size``, at any of ``looked_at`` places."""
    return float(-binom.logsf(count - 1, size, min(share, 1.0)) / np.log(10) - np.log10(looked_at))

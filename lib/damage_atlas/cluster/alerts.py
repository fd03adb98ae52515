"""What raises a hand: places where new images crowd, clusters that are born or grow, deliveries that drift.

One measure for all: how unlikely so many new moments would be if they came from where the archive's moments come from.
A moment is counted once, however many images it gave: tiles of one photo, frames of ten seconds.

N images of the run, M new ones, P of the previous version, D dimensions, K neighbours.
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

from damage_atlas.cluster.moments import first_of_moment
from damage_atlas.neighbours import Floats, Ints, exact_neighbours
from damage_atlas.spec import ClusterSpec

Flags = NDArray[np.bool_]
Kind = Literal["born", "growth", "group", "drift"]

_LARGEST_BALL = 24  # moments around a new image that are looked at
_IMAGES_A_MOMENT = 4  # so many times as many images are looked through for them
_NEAREST = 5  # moments: whose most of them are in a place belongs to it
_MOSTLY = 0.5  # of a candidate's images: what makes it another alert's
_BORN_NEW_SHARE, _BORN_LEAST = 0.2, 3  # of a born cluster's moments that no version had: else it is old noise
_BORN_UNKNOWN_SHARE = 0.8  # of a born cluster's moments that were in no cluster before
_ROWS_AT_ONCE = 20_000  # of the new images; bounds what the search holds
_FAR_QUANTILE = 0.95
_FAR_SAMPLE = 2000  # images of the previous version among which "far" is measured


@dataclass(frozen=True)
class Images:
    """The run's images.

    Attributes:
        is_new_N: the previous version did not hold it.
        was_clustered_N: it lay in a cluster of the previous version.
        moment_N: number of the moment that it shows.
    """

    vectors_ND: Floats
    is_new_N: Flags
    was_clustered_N: Flags
    moment_N: Ints


@dataclass(frozen=True)
class Earlier:
    """The previous version's images: vectors by the run's model, and moments numbered as the run's are."""

    vectors_PD: Floats
    moment_P: Ints


@dataclass(frozen=True)
class Cluster:
    """What is asked of one cluster of this run.

    Attributes:
        rows: its images.
        before: moments of its images in the previous version, also of those that this run no longer has.
    """

    cluster_id: int
    status: str
    rows: Ints
    map_artefact: bool
    before: int = 0


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        rows: the new images that it is about, rows of the run's images.
        moments: how many moments these show.
        expected: so many moments would lie there by chance.
        score: -log10 of the chance that so many do, all places that were looked at counted in.
        growth: moments of the cluster / those of them that are not new, or those that it had, whichever are more.
    """

    kind: Kind
    cluster_id: int | None
    rows: Ints
    moments: int
    expected: float
    score: float
    growth: float | None = None


def find_alerts(images: Images, earlier: Earlier, clusters: Sequence[Cluster], spec: ClusterSpec) -> list[Finding]:
    """All that passes the limits of ``spec``, each image in one finding as a rule, the strongest first."""
    new = np.flatnonzero(images.is_new_N)
    if len(new) == 0 or len(earlier.vectors_PD) == 0:
        return []
    found = sorted(
        _clusters(images, earlier, clusters, spec), key=lambda f: (f.kind != "born", -f.score, f.cluster_id or 0)
    )
    found += crowded_places(images, earlier, spec.alert_score)
    kept: list[Finding] = []
    told = np.zeros(len(images.is_new_N), bool)
    for finding in found:
        if told[finding.rows].mean() < _MOSTLY:
            kept.append(finding)
            told[finding.rows] = True
    # A new kind in it does not make a delivery unlike the archive; what holds most of the delivery does.
    for finding in kept:
        if len(finding.rows) > _MOSTLY * len(new):
            told[finding.rows] = False
    kept += _drift(images, new[~told[new]], earlier, spec)
    return sorted(kept, key=lambda f: -f.score)


def crowded_places(images: Images, earlier: Earlier, at_least: float) -> list[Finding]:
    """Places where new moments lie closer together than chance puts them there.

    Around each new image balls of its 1 to 24 nearest moments, new and old ones, are looked at; of the new ones among
    them the binomial tail is taken, and of all balls and images the least: a scan statistic (Kulldorff 1997) over
    nearest neighbours (Schilling 1986). Balls that pass ``at_least`` and share images are one place.
    """
    new = np.flatnonzero(images.is_new_N)
    m = len(new)
    pool = np.concatenate([images.vectors_ND[new], earlier.vectors_PD])
    moment = np.concatenate([images.moment_N[new], earlier.moment_P])
    share, looked_at = _new_share(images, earlier)
    best = np.zeros(m)
    nearest = np.full((m, _NEAREST), len(pool))  # the nearest image of each of the nearest moments
    of_balls: list[tuple[Ints, Ints]] = []  # a seed, and an image in its ball
    for rows in np.array_split(np.arange(m), -(-m // _ROWS_AT_ONCE)):
        near = exact_neighbours(pool, _IMAGES_A_MOMENT * _LARGEST_BALL + 1, images.vectors_ND[new[rows]]).ids_NK
        counted = first_of_moment(moment[near], moment[rows])
        counted &= np.cumsum(counted, axis=1) <= _LARGEST_BALL
        sizes = np.cumsum(counted, axis=1, dtype=np.int64)
        counts = np.cumsum(counted & (near < m), axis=1, dtype=np.int64)
        row, column = np.nonzero(counted & (sizes <= _NEAREST))
        nearest[rows[row], sizes[row, column] - 1] = near[row, column]
        scores = _scores(counts, sizes, share, looked_at)
        best[rows] = scores.max(axis=1, initial=0)
        # The smallest ball that passes: a larger one may pass by more, and take in what does not belong there.
        passes = np.flatnonzero(best[rows] >= at_least)
        ball = (scores[passes] >= at_least).argmax(axis=1)
        seed, column = np.nonzero(np.arange(near.shape[1]) <= ball[:, None])
        of_balls.append((rows[passes][seed], near[passes][seed, column]))
    seed_of, inside = (np.concatenate(parts) for parts in zip(*of_balls, strict=True))
    if len(seed_of) == 0:
        return []
    pairs = (np.ones(int((inside < m).sum())), (seed_of[inside < m], inside[inside < m]))
    _, place = connected_components(csr_matrix(pairs, shape=(m, m)), directed=False)
    by_place = np.argsort(place[seed_of], kind="stable")
    names, first = np.unique(place[seed_of][by_place], return_index=True)
    found = []
    for name, balls in zip(names, np.split(by_place, first[1:]), strict=True):
        members = _joined(np.flatnonzero(place == name), nearest, len(pool))
        there = np.union1d(members, inside[balls])
        expected = len(np.unique(moment[there])) * share
        moments = len(np.unique(moment[members]))
        found.append(Finding("group", None, new[members], moments, expected, float(best[seed_of[balls]].max())))
    return sorted(found, key=lambda f: -f.score)


def _joined(members: Ints, nearest_MK: Ints, nobody: int) -> Ints:
    """A place with the new images around it: those of whose nearest moments most are in it, and so on from there."""
    inside = np.zeros(nobody + 1, bool)
    inside[members] = True
    while True:
        joins = inside[nearest_MK].sum(axis=1) > _NEAREST / 2
        joins &= ~inside[: len(joins)]
        if not joins.any():
            return np.flatnonzero(inside)
        inside[: len(joins)] |= joins


def _clusters(images: Images, earlier: Earlier, clusters: Sequence[Cluster], spec: ClusterSpec) -> list[Finding]:
    # In a rolling window images leave as others come: what a cluster holds is drawn from the images of this run.
    new, of_all = (len(np.unique(moments)) for moments in (images.moment_N[images.is_new_N], images.moment_N))
    share = new / of_all
    # New images were in no cluster before, nor was noise; a cluster of these is no old one by another name.
    unknown_share = float((~images.was_clustered_N).mean())
    found = []
    for cluster in clusters:
        rows = cluster.rows[images.is_new_N[cluster.rows]]
        size, fresh = (len(np.unique(images.moment_N[r])) for r in (cluster.rows, rows))
        unknown = len(np.unique(images.moment_N[cluster.rows[~images.was_clustered_N[cluster.rows]]]))
        if cluster.status == "born" and not cluster.map_artefact:
            score = float(_scores(unknown, size, unknown_share, len(clusters)))
            enough = fresh >= max(_BORN_LEAST, _BORN_NEW_SHARE * size) and unknown >= _BORN_UNKNOWN_SHARE * size
            if enough and score >= spec.alert_score:
                found.append(Finding("born", cluster.cluster_id, rows, fresh, size * share, score))
        elif (
            cluster.before
            and 0 < fresh < size
            and (growth := size / max(size - fresh, cluster.before)) >= spec.alert_growth
        ):
            score = float(_scores(fresh, size, share, len(clusters)))
            if score >= spec.alert_score:
                found.append(Finding("growth", cluster.cluster_id, rows, fresh, size * share, score, growth))
    return found


def _drift(images: Images, new_M: Ints, earlier: Earlier, spec: ClusterSpec) -> list[Finding]:
    """The delivery as a whole: how many new moments lie farther from the old ones than those do from each other."""
    old = earlier.vectors_PD
    if len(old) < 2 or len(new_M) == 0:
        return []
    asked = np.random.default_rng(0).permutation(len(old))[:_FAR_SAMPLE]
    near = exact_neighbours(old, _LARGEST_BALL + 1, old[asked])
    other = earlier.moment_P[near.ids_NK] != earlier.moment_P[asked][:, None]
    nearest = np.where(other.any(axis=1), other.argmax(axis=1), near.ids_NK.shape[1] - 1)
    among = 1 - near.similarities_NK[np.arange(len(asked)), nearest]
    away = 1 - exact_neighbours(old, 1, images.vectors_ND[new_M]).similarities_NK[:, 0]
    far = away > np.quantile(among, _FAR_QUANTILE)
    moments, which = np.unique(images.moment_N[new_M], return_inverse=True)
    is_far = np.bincount(which, weights=far) >= _MOSTLY * np.bincount(which)
    score = float(_scores(int(is_far.sum()), len(moments), 1 - _FAR_QUANTILE, 1))
    if is_far.mean() < spec.alert_drift or score < spec.alert_score:
        return []
    rows = new_M[far & is_far[which]]
    return [Finding("drift", None, rows, int(is_far.sum()), (1 - _FAR_QUANTILE) * len(moments), score)]


def _new_share(images: Images, earlier: Earlier) -> tuple[float, int]:
    """Share of new moments among all of both versions, and how many these are."""
    new = len(np.unique(images.moment_N[images.is_new_N]))
    return new / (new + len(np.unique(earlier.moment_P))), new


def _scores(counts: Ints | int, sizes: Ints | int, share: float, looked_at: int) -> NDArray[np.float64]:
    """-log10 of the chance of ``counts`` or more of ``sizes``, at any of ``looked_at`` places."""
    tail = -binom.logsf(np.asarray(counts) - 1, sizes, min(share, 1.0)) / np.log(10)
    return np.asarray(tail - np.log10(max(looked_at, 1)))

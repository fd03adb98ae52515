"""Archives too large for one map: landmarks are mapped and clustered, all other images follow their neighbours.

N images, M of them landmarks, R the rest, K neighbours, D embedding dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from damage_atlas.cluster.layout import set_apart
from damage_atlas.errors import InputError
from damage_atlas.neighbours import Floats, Ints, Neighbours, exact_neighbours
from damage_atlas.spec import ClusterSpec

_RARE_SHARE = 0.5  # of landmarks: those least like the others; the rest is drawn evenly
_PROBES = 20_000  # drawn landmarks that the rare ones are told by
_PROBE_NEIGHBOURS = 10  # a region with fewer probes than DBSCAN wants of neighbours would be lost
_VOTERS = 10  # landmarks nearest to an image that say where it belongs
_ROWS_AT_ONCE = 100_000  # of the rest; bounds what the search holds
_UNLIKE_QUANTILE = 0.999  # of the landmarks' distances to their nearest: beyond it an image belongs nowhere
_REDRAW_BELOW, _REDRAW_ABOVE = 0.8, 1.5  # times the wanted number: landmarks that came or went are drawn anew
_GIB = 2**30


@dataclass(frozen=True)
class Clustered:
    """Every image's place and cluster.

    Attributes:
        labels_N: -1 for noise.
        near: of each image the nearest landmarks in the embedding, without itself; where all images are on the map,
            simply its nearest images.
        disagreement: share of landmarks that their neighbours would put into another cluster than the map does, on a
            sample; 0 where all images are on the map.
    """

    positions_N2: Floats
    labels_N: Ints
    roles: list[str]
    near: Neighbours
    disagreement: float


def choose_landmarks(
    vectors_ND: Floats,
    spec: ClusterSpec,
    landmark_N: NDArray[np.bool_] | None = None,
    new_N: NDArray[np.bool_] | None = None,
) -> Ints:
    """Rows of the images that are mapped, ascending: all of them up to ``spec.landmarks``.

    Beyond it half are drawn evenly and half are those least like a sample of what was drawn, so that a group of images
    too rare for the draw is on the map as a whole (density-biased sampling, after Palmer and Faloutsos 2000).

    Args:
        landmark_N: landmarks of an earlier map: they stay, and new images add their share. None: there is no such map.
        new_N: images that came since.
    """
    n = len(vectors_ND)
    if n <= spec.landmarks:
        return np.arange(n)
    kept = np.zeros(n, bool)
    open_rows, wanted = np.arange(n), spec.landmarks
    if landmark_N is not None and new_N is not None and not _worn_out(landmark_N, ~new_N, spec):
        kept, open_rows = landmark_N.copy(), np.flatnonzero(new_N)
        missing = spec.landmarks - int(kept.sum())  # of those that have left the archive
        wanted = min(max(round(spec.landmarks * len(open_rows) / n), missing), len(open_rows))
    draw = np.random.default_rng(spec.seed)
    drawn = draw.permutation(open_rows)[: wanted - int(_RARE_SHARE * wanted)]
    kept[drawn] = True
    probes = draw.permutation(np.flatnonzero(kept))[:_PROBES]
    others = open_rows[~kept[open_rows]]
    if len(others) == 0:
        return np.flatnonzero(kept)
    distance = np.concatenate(
        [
            1 - exact_neighbours(vectors_ND[probes], _PROBE_NEIGHBOURS, vectors_ND[rows]).similarities_NK[:, -1]
            for rows in _some_at_a_time(others)
        ]
    )
    rare = others[np.argsort(-distance, kind="stable")[: wanted - len(drawn)]]
    kept[rare] = True
    return np.flatnonzero(kept)


def redraw_because(landmark_N: NDArray[np.bool_], placed_N: NDArray[np.bool_], spec: ClusterSpec) -> str:
    """Why the landmarks of an earlier map cannot stay, so that it cannot either; empty if they can.

    Where other images lie follows from the landmarks around them: on a map of their own such places mean nothing.
    """
    if not (placed_N & ~landmark_N).any():
        return ""
    if len(landmark_N) <= spec.landmarks:
        return f"all {len(landmark_N):,} images are on the map now, and the earlier one had landmarks"
    if _worn_out(landmark_N, placed_N, spec):
        return f"{int(landmark_N.sum()):,} landmarks of the earlier map are left, and {spec.landmarks:,} are drawn anew"
    return ""


def _worn_out(landmark_N: NDArray[np.bool_], old_N: NDArray[np.bool_], spec: ClusterSpec) -> bool:
    # Where all old images are landmarks, the archive was small and has grown: there are none to draw instead.
    have_left = bool((old_N & ~landmark_N).any()) and landmark_N.sum() < _REDRAW_BELOW * spec.landmarks
    return have_left or not 0 < landmark_N.sum() <= _REDRAW_ABOVE * spec.landmarks


def spread(
    vectors_ND: Floats,
    mapped_M: Ints,
    near: Neighbours,
    positions_M2: Floats,
    labels_M: Ints,
    roles_M: list[str],
    old_N2: NDArray[np.float64] | None,
) -> Clustered:
    """Give every image that is not on the map the place and the cluster that most of its nearest landmarks have.

    One that is unlike all landmarks is noise, and lies apart.

    Args:
        near: neighbours of landmarks among landmarks.
        old_N2: where images lay on the map that was kept, NaN for new ones: these places stay.
    """
    n = len(vectors_ND)
    if len(mapped_M) == n:
        return Clustered(positions_M2, labels_M, roles_M, near, 0.0)
    near_ids, similarities = np.zeros((n, _VOTERS), np.int64), np.zeros((n, _VOTERS), np.float32)
    near_ids[mapped_M] = mapped_M[near.ids_NK[:, :_VOTERS]]
    similarities[mapped_M] = near.similarities_NK[:, :_VOTERS]
    labels, is_unlike = np.full(n, -1, np.int64), np.zeros(n, bool)
    positions = np.zeros((n, 2), np.float32)
    labels[mapped_M], positions[mapped_M] = labels_M, positions_M2
    far = float(np.quantile(1 - near.similarities_NK[:, 0], _UNLIKE_QUANTILE))
    rest = np.setdiff1d(np.arange(n), mapped_M, assume_unique=True)
    for rows in _some_at_a_time(rest):
        found = exact_neighbours(vectors_ND[mapped_M], _VOTERS, vectors_ND[rows])
        voted = _vote(labels_M[found.ids_NK])
        # Where those lie that voted so: the mean over both sides of a gap would be in the gap.
        agree = labels_M[found.ids_NK] == voted[:, None]
        weights = (agree / agree.sum(axis=1, keepdims=True))[..., None]
        positions[rows] = (positions_M2[found.ids_NK] * weights).sum(axis=1)
        is_unlike[rows] = 1 - found.similarities_NK[:, 0] > far
        labels[rows] = np.where(is_unlike[rows], -1, voted)
        near_ids[rows], similarities[rows] = mapped_M[found.ids_NK], found.similarities_NK
    if old_N2 is not None:
        stays = rest[~np.isnan(old_N2[rest, 0])]
        positions[stays] = old_N2[stays]
        is_unlike[stays] = False  # they have been set apart before
    positions = set_apart(positions, vectors_ND, np.flatnonzero(is_unlike), ~is_unlike)
    roles = np.where(labels < 0, "noise", "border").astype(object)
    roles[mapped_M] = roles_M
    whole = Neighbours(near_ids, similarities)
    return Clustered(positions, labels, roles.tolist(), whole, _disagreement(near, labels_M))


def estimate_memory(images: int, mapped: int, dimension: int, spec: ClusterSpec) -> int:
    """Bytes that the stage is going to need at its peak: a fifth more than maps of 5,000 to 40,000 took."""
    neighbours = 3 * spec.perplexity + 1
    on_the_map = mapped * (neighbours * 70 + 2000)  # ids, similarities, affinities both ways, the optimizer's state
    all_images = images * (dimension * 4 * 3 + 1500)  # vectors, ids, columns of the tables
    return int(on_the_map + all_images + 0.5 * _GIB)


def check_memory(images: int, mapped: int, dimension: int, spec: ClusterSpec) -> int:
    """The estimate.

    Raises:
        InputError: it is above ``spec.memory_gib``.
    """
    estimate = estimate_memory(images, mapped, dimension, spec)
    if estimate > spec.memory_gib * _GIB:
        raise InputError(
            f"A map of {mapped:,} of {images:,} images would take about {estimate / _GIB:.1f} GiB, more than "
            f"cluster.memory_gib allows ({spec.memory_gib:g}). Lower cluster.landmarks ({spec.landmarks:,}), or allow "
            "more memory where there is more."
        )
    return estimate


def _vote(labels_RK: Ints) -> Ints:
    """The most frequent label of each row; of equally frequent ones that of the nearest landmark."""
    same = (labels_RK[:, :, None] == labels_RK[:, None, :]).sum(axis=2)
    return np.asarray(np.take_along_axis(labels_RK, same.argmax(axis=1)[:, None], 1)[:, 0])


def _disagreement(near: Neighbours, labels_M: Ints) -> float:
    rows = np.random.default_rng(0).permutation(len(labels_M))[:_PROBES]
    return float((_vote(labels_M[near.ids_NK[rows, :_VOTERS]]) != labels_M[rows]).mean())


def _some_at_a_time(rows: Ints) -> list[Ints]:
    return np.array_split(rows, max(-(-len(rows) // _ROWS_AT_ONCE), 1))

"""The map: t-SNE to two dimensions by openTSNE, on neighbours that FAISS has found. N points, K neighbours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openTSNE import TSNEEmbedding
from openTSNE._tsne import (
    estimate_negative_gradient_bh,
    estimate_negative_gradient_fft_2d,
    estimate_positive_gradient_nn,
)
from openTSNE.affinity import PerplexityBasedNN, joint_probabilities_nn
from openTSNE.nearest_neighbors import PrecomputedNeighbors
from openTSNE.quad_tree import QuadTree
from openTSNE.tsne import gradient_descent, kl_divergence_bh, kl_divergence_fft
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from damage_atlas.neighbours import Floats, Ints, Neighbours
from damage_atlas.spec import ClusterSpec

SMALLEST_MAP = 8  # fewer points have no neighbourhoods to speak of
_EXAGGERATION = 12.0
_EXAGGERATION_ITERATIONS = 250
_SMALL_MAP = 2000  # below it, threads wait for each other longer than they work
_INTERPOLATED_FROM = 8000  # points that join: from about here on interpolation (Linderman et al. 2019) is faster
_START_SPREAD = 1e-4  # standard deviation; openTSNE's own: a start this small is still free to unfold
_THETA, _INTERVALS = 0.5, 50  # of Barnes-Hut, and of interpolation at least: as openTSNE's
# Of points that find their place among others: openTSNE's transform takes as many iterations and as much exaggeration.
_JOIN_EXAGGERATION, _JOIN_EXAGGERATION_ITERATIONS, _JOIN_ITERATIONS = 4.0, 100, 250

Positions = NDArray[np.float64]


def make_map(
    vectors_ND: Floats,
    near: Neighbours,
    spec: ClusterSpec,
    start_N2: Positions | None = None,
    random_start: int | None = None,
) -> Floats:
    """Positions on the map: N x 2, float32; the same input gives the same map.

    Args:
        near: neighbours of each vector without itself, nearest first.
        start_N2: where points lay before, NaN for new ones; those start at the mean of their placed neighbours.
        random_start: seed of a random start, instead of the vectors' principal plane.
    """
    n = len(vectors_ND)
    if n < SMALLEST_MAP or np.ptp(vectors_ND, axis=0).max() < 1e-7:
        # All alike, or too few to map: one place each along the main direction, which keeps identical ones together.
        return _principal_plane(vectors_ND).astype(np.float32)
    if random_start is None:
        start = _start(vectors_ND, near, start_N2)
    else:
        start = np.random.default_rng(random_start).normal(0, _START_SPREAD, (n, 2))
    # One thread for BLAS: its sums depend on the number of threads, and t-SNE amplifies the last bit.
    with threadpool_limits(limits=1, user_api="blas"):
        at = _embedding_of(near, spec)
        embedding = at(start).optimize(
            n_iter=_EXAGGERATION_ITERATIONS, exaggeration=_EXAGGERATION, momentum=0.5, learning_rate="auto"
        )
        if np.std(embedding, axis=0).max() < _START_SPREAD:
            # A few points without groups: exaggerated attraction has drawn all into one, out of which nothing leads.
            embedding = at(start)
        embedding = embedding.optimize(
            n_iter=spec.map_iterations - _EXAGGERATION_ITERATIONS, momentum=0.8, learning_rate="auto"
        )
    return np.asarray(embedding, np.float32)


def join_map(near: Neighbours, spec: ClusterSpec, start_N2: Positions, fixed_N: NDArray[np.bool_]) -> Floats:
    """The map after the points that are not fixed have found their places among those that are: N x 2, float32.

    All points attract and repel each other as in any t-SNE, so that new points of a kind gather, but fixed ones do not
    move. openTSNE's own ``transform`` places each point by itself, and would scatter a new kind among the old ones.
    While they are few, a step costs what the free points cost: what fixed ones do to each other is known beforehand.

    Args:
        near: neighbours of each vector without itself, nearest first.
        start_N2: where all points start.
    """
    free = np.flatnonzero(~fixed_N)
    middle = start_N2[fixed_N].mean(axis=0)
    whole = (start_N2 - middle).view(_Whole)
    moving, optimizer = np.ascontiguousarray(start_N2[free] - middle), gradient_descent()
    with threadpool_limits(limits=1, user_api="blas"):
        theta = _THETA if len(free) < _INTERPOLATED_FROM else None
        # However few are free, each asks the tree of all that are fixed, which is work for more than one thread.
        objective = objective_among_fixed(np.asarray(whole)[fixed_N], free, _threads(len(whole), spec), theta)
        attraction = affinities_of(free, near, spec)
        for iterations, exaggeration, momentum in (
            (_JOIN_EXAGGERATION_ITERATIONS, _JOIN_EXAGGERATION, 0.5),
            (_JOIN_ITERATIONS, 1.0, 0.8),
        ):
            _, moving = optimizer(
                moving,
                attraction,
                n_iter=iterations,
                exaggeration=exaggeration,
                momentum=momentum,
                # As for a whole map (Belkina et al. 2019), whose divergence it is that falls. openTSNE warns of so high
                # a rate where each new point has a divergence of its own.
                learning_rate=len(whole) / exaggeration,
                objective_function=objective,
                reference_embedding=whole,  # the optimizer leaves the middle alone if there is one
            )
    positions = start_N2.copy()
    positions[free] = moving + middle
    return positions.astype(np.float32)


class _Whole(np.ndarray[Any, Any]):
    """Positions of all points, with the attributes that openTSNE's optimizer looks for on a map that others join."""

    interp_coeffs = box_x_lower_bounds = None  # there is no grid that would hold back what moves


def affinities_of(rows_F: Ints, near: Neighbours, spec: ClusterSpec) -> csr_matrix:
    """The rows of t-SNE's joint probabilities that belong to some of the points: F x N.

    They hang on the neighbours of these points and of those that have one of them as a neighbour, and on no other.
    """
    n = len(near.ids_NK)
    is_asked = np.zeros(n, bool)
    is_asked[rows_F] = True
    rows = np.flatnonzero(is_asked | is_asked[near.ids_NK].any(axis=1))
    conditional = joint_probabilities_nn(
        near.ids_NK[rows],
        _distances(near.similarities_NK[rows]),
        [_perplexity(near, spec)],
        symmetrize=False,
        normalization="point-wise",
        n_reference_samples=n,
        n_jobs=_threads(n, spec),
    )
    to_asked = csr_matrix(conditional[:, rows_F].T)
    to_asked = csr_matrix((to_asked.data, rows[to_asked.indices], to_asked.indptr), shape=(len(rows_F), n))
    return csr_matrix((conditional[np.searchsorted(rows, rows_F)] + to_asked) / (2 * n))


def objective_among_fixed(
    fixed_F2: Positions, free_M: Ints, threads: int, theta: float | None = _THETA
) -> Callable[..., tuple[float, Positions]]:
    """The gradient of t-SNE's divergence over all points, of those that may move; the divergence itself is not needed.

    Args:
        free_M: where the points that may move stand among all.
        theta: of Barnes-Hut: 0 takes each point by itself, which is exact. None: interpolated, as for large maps.
    """
    repulsion = _interpolated(free_M) if theta is None else _by_trees(fixed_F2, threads, theta)

    def gradient_of_free(
        moving_M2: Positions,
        P: csr_matrix,
        *,
        reference_embedding: Positions,
        **_: Any,
    ) -> tuple[float, Positions]:
        reference_embedding[free_M] = moving_M2
        gradient = repulsion(moving_M2, reference_embedding)
        estimate_positive_gradient_nn(
            P.indices, P.indptr, P.data, moving_M2, reference_embedding, gradient, num_threads=threads
        )
        return 0.0, gradient

    return gradient_of_free


def _by_trees(fixed_F2: Positions, threads: int, theta: float) -> Callable[[Positions, Positions], Positions]:
    """Barnes-Hut, over a tree of fixed points that is made once and one of free points that is made anew."""
    repel = partial(estimate_negative_gradient_bh, theta=theta, num_threads=threads)
    fixed = QuadTree(fixed_F2)
    among_fixed = repel(fixed, fixed_F2, np.zeros_like(fixed_F2))

    def repulsion(moving_M2: Positions, _: Positions) -> Positions:
        total, gradient = among_fixed, np.zeros_like(moving_M2)
        for tree, pairs in ((fixed, 2), (QuadTree(moving_M2), 1)):
            scaled = np.zeros_like(moving_M2)
            each = repel(tree, moving_M2, scaled)
            total += pairs * each
            gradient += scaled * each  # it comes divided by the tree's own total
        return np.asarray(gradient / max(total, np.finfo(np.float64).tiny))

    return repulsion


def _interpolated(free_M: Ints) -> Callable[[Positions, Positions], Positions]:
    def repulsion(_: Positions, positions_N2: Positions) -> Positions:
        gradient = np.zeros(positions_N2.shape)
        estimate_negative_gradient_fft_2d(positions_N2, gradient, min_num_intervals=_INTERVALS)
        return gradient[free_M]

    return repulsion


def kl_divergence(embedding_N2: Positions, *arguments: Any, **named: Any) -> tuple[float, Positions]:
    """openTSNE's, by interpolation while its grid has no more cells than there are points, else by Barnes-Hut.

    A grid's cell is one unit wide, so that its price grows with the area of the map; that of trees does not. A map
    begins small: in its first iterations interpolation is the faster for all but small ones.
    """
    cells = max(float(np.ptp(embedding_N2, axis=0).max()), _INTERVALS) ** 2
    chosen = kl_divergence_fft if cells <= len(embedding_N2) else kl_divergence_bh
    return chosen(embedding_N2, *arguments, **named)


def _embedding_of(near: Neighbours, spec: ClusterSpec) -> Callable[[Positions], TSNEEmbedding]:
    """What makes an embedding of positions, with affinities that are computed once."""
    threads = _threads(len(near.ids_NK), spec)
    affinities = PerplexityBasedNN(
        perplexity=_perplexity(near, spec),
        knn_index=PrecomputedNeighbors(near.ids_NK, _distances(near.similarities_NK)),
        n_jobs=threads,
        random_state=spec.seed,
    )
    return lambda positions_N2: TSNEEmbedding(
        positions_N2, affinities, negative_gradient_method=kl_divergence, n_jobs=threads, random_state=spec.seed
    )


def _threads(n: int, spec: ClusterSpec) -> int:
    return spec.threads if n >= _SMALL_MAP else 1


def _perplexity(near: Neighbours, spec: ClusterSpec) -> float:
    return min(spec.perplexity, near.ids_NK.shape[1] / 3)


def _distances(similarities_NK: Floats) -> Positions:
    return np.sqrt(np.maximum(2 - 2 * similarities_NK.astype(np.float64), 0))  # of unit vectors


def _start(vectors_ND: Floats, near: Neighbours, start_N2: Positions | None) -> Positions:
    is_of_use = start_N2 is not None and np.isnan(start_N2[:, 0]).mean() <= 0.9 and np.nanstd(start_N2[:, 0]) > 0
    if start_N2 is None or not is_of_use:
        positions = _principal_plane(vectors_ND)
    else:
        positions = start_N2.copy()
        placed = ~np.isnan(positions[:, 0])
        centre = positions[placed].mean(axis=0)
        for row in np.flatnonzero(~placed):
            around = near.ids_NK[row][placed[near.ids_NK[row]]][:10]
            positions[row] = positions[around].mean(axis=0) if len(around) else centre
        # Images that share all neighbours would start in one point and never part.
        positions += np.random.default_rng(0).normal(0, 1e-3 * positions.std(), positions.shape)
    return np.asarray(positions / max(positions[:, 0].std(), 1e-12) * _START_SPREAD)


def _principal_plane(vectors_ND: Floats) -> Positions:
    if len(vectors_ND) == 0:
        return np.zeros((0, 2))
    centred = vectors_ND.astype(np.float64) - vectors_ND.mean(axis=0, dtype=np.float64)
    values, directions = np.linalg.eigh(centred.T @ centred)
    plane = directions[:, np.argsort(values)[::-1][:2]]
    # A direction's sign is arbitrary; fix it by its largest component.
    plane *= np.sign(plane[np.abs(plane).argmax(axis=0), range(plane.shape[1])])
    return np.asarray(centred @ plane)

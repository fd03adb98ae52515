"""The map: t-SNE to two dimensions by openTSNE, on neighbours that FAISS has found. N points, K neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from openTSNE import TSNEEmbedding
from openTSNE.affinity import PerplexityBasedNN
from openTSNE.nearest_neighbors import PrecomputedNeighbors
from threadpoolctl import threadpool_limits

from damage_atlas.neighbours import Floats, Neighbours
from damage_atlas.spec import ClusterSpec

_SMALLEST_MAP = 8  # fewer points have no neighbourhoods to speak of
_EXAGGERATION = 12.0
_EXAGGERATION_ITERATIONS = 250
_SMALL_MAP = 5000  # below it, threads wait for each other longer than they work
_INTERPOLATED_FROM = 8000  # points; from about here on the interpolated gradient (Linderman et al. 2019) is faster
_START_SPREAD = 1e-4  # standard deviation; openTSNE's own: a start this small is still free to unfold


def make_map(
    vectors_ND: Floats, near: Neighbours, spec: ClusterSpec, start_N2: NDArray[np.float64] | None = None
) -> Floats:
    """Positions on the map: N x 2, float32; the same input gives the same map.

    Args:
        near: neighbours of each vector without itself, nearest first.
        start_N2: where points lay before, NaN for new ones; those start at the mean of their placed neighbours.
    """
    n = len(vectors_ND)
    if n < _SMALLEST_MAP or np.ptp(vectors_ND, axis=0).max() < 1e-7:
        # All alike, or too few to map: one place each along the main direction, which keeps identical ones together.
        return _principal_plane(vectors_ND).astype(np.float32)
    distances = np.sqrt(np.maximum(2 - 2 * near.similarities_NK.astype(np.float64), 0))  # of unit vectors
    threads = spec.threads if n >= _SMALL_MAP else 1
    # One thread for BLAS: its sums depend on the number of threads, and t-SNE amplifies the last bit.
    with threadpool_limits(limits=1, user_api="blas"):
        affinities = PerplexityBasedNN(
            perplexity=min(spec.perplexity, near.ids_NK.shape[1] / 3),
            knn_index=PrecomputedNeighbors(near.ids_NK, distances),
            n_jobs=threads,
            random_state=spec.seed,
        )

        def at(positions_N2: NDArray[np.float64]) -> TSNEEmbedding:
            return TSNEEmbedding(
                positions_N2,
                affinities,
                negative_gradient_method="fft" if n >= _INTERPOLATED_FROM else "bh",
                n_jobs=threads,
                random_state=spec.seed,
            )

        start = _start(vectors_ND, near, start_N2)
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


def _start(vectors_ND: Floats, near: Neighbours, start_N2: NDArray[np.float64] | None) -> NDArray[np.float64]:
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


def _principal_plane(vectors_ND: Floats) -> NDArray[np.float64]:
    if len(vectors_ND) == 0:
        return np.zeros((0, 2))
    centred = vectors_ND.astype(np.float64) - vectors_ND.mean(axis=0, dtype=np.float64)
    values, directions = np.linalg.eigh(centred.T @ centred)
    plane = directions[:, np.argsort(values)[::-1][:2]]
    # A direction's sign is arbitrary; fix it by its largest component.
    plane *= np.sign(plane[np.abs(plane).argmax(axis=0), range(plane.shape[1])])
    return np.asarray(centred @ plane)

"""eps without labels: the knee of the neighbour distances, checked by how little the clusters hang on it.

N points on the map.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.metrics import adjusted_rand_score

from damage_atlas.cluster.dbscan import dbscan
from damage_atlas.neighbours import Floats, Ints

_SMALLEST_EPS = 1e-3
_STEPS_OF_A_QUARTER = 3  # from 0.8 eps to eps to 1.25 eps: radii that are compared lie on one grid
_STEP = 1.25 ** (1 / _STEPS_OF_A_QUARTER)
_FARTHEST = 7  # steps that the radius may lie from the knee: 0.59 to 1.7 times
_STABLE = 0.75  # adjusted Rand index between the clusters of eps and those of 0.8 and of 1.25 eps
_BODY_SHARE = 0.9  # of all points: a cluster of more is the whole map, however stable
_NOISE_SHARE = 0.25  # with more noise, the radius is that of the densest spots


Found = tuple[Ints, NDArray[np.bool_]]


@dataclass(frozen=True)
class Radius:
    """A radius for DBSCAN; ``stability`` is the lower ARI with the clusters of 0.8 and of 1.25 times it.

    Of a radius that was set, neither is known. ``found`` is DBSCAN's answer with it: labels and core points.
    """

    eps: float
    knee: float | None = None
    stability: float | None = None
    found: Found | None = field(default=None, compare=False, repr=False)


def choose_eps(positions_N2: Floats, min_neighbours: int, before: float | None = None) -> Radius:
    """The radius nearest to the knee at which clusters hardly depend on it; the knee itself where there is none.

    Args:
        before: the radius of an earlier version on the same map. While it is stable it stays: another one, however
            little better, would split and merge clusters that have not changed.

    A radius counts if it makes two clusters or more, none of which is nearly the whole map, and leaves at most a
    quarter noise. Of those that count but are not stable, none is preferred to the knee.
    """
    knee = find_knee(positions_N2, min_neighbours)
    if before is not None:
        around = [dbscan(positions_N2, before * factor, min_neighbours) for factor in (0.8, 1, 1.25)]
        if (held := _stability([labels for labels, _ in around])) >= _STABLE:
            return Radius(before, knee, held, around[1])
    steps = range(-_FARTHEST - _STEPS_OF_A_QUARTER, _FARTHEST + _STEPS_OF_A_QUARTER + 1)
    found = {step: dbscan(positions_N2, knee * _STEP**step, min_neighbours) for step in steps}
    stability = {
        step: _stability([found[step + other][0] for other in (-_STEPS_OF_A_QUARTER, 0, _STEPS_OF_A_QUARTER)])
        for step in range(-_FARTHEST, _FARTHEST + 1)
    }
    stable = [step for step, value in stability.items() if value >= _STABLE]
    # As near to the knee as can be; of two equally near the wider, which leaves less noise.
    step = min(stable, key=lambda step: (abs(step), -step), default=0)
    return Radius(knee * _STEP**step, knee, stability[step], found[step])


def find_knee(positions_N2: Floats, min_neighbours: int) -> float:
    """The knee of the sorted distances to the ``min_neighbours``-th neighbour, looked for in their upper half.

    The knee is the point farthest below the chord from the median to the 99.5th percentile: nearer points lie in
    dense regions, farther ones between them (Ester et al. 1996, section 4.2; Satopää et al. 2011).
    """
    if len(positions_N2) <= min_neighbours:
        return _SMALLEST_EPS
    positions = positions_N2.astype(np.float64)
    distances: NDArray[np.float64] = np.sort(cKDTree(positions).query(positions, k=[min_neighbours])[0][:, 0])
    curve = np.quantile(distances, np.linspace(0.5, 0.995, 200))
    chord = np.linspace(curve[0], curve[-1], len(curve))
    return max(float(curve[(chord - curve).argmax()]), _SMALLEST_EPS)


def _stability(labels_of_smaller_own_larger: list[Ints]) -> float:
    """The lower adjusted Rand index with the clusters of a smaller and of a larger radius; 0 for what says nothing."""
    smaller, own, larger = labels_of_smaller_own_larger
    if not _says_something(own):
        return 0.0
    return float(min(adjusted_rand_score(own, smaller), adjusted_rand_score(own, larger)))


def _says_something(labels_N: Ints) -> bool:
    if len(labels_N) == 0 or labels_N.max() < 1:
        return False
    sizes = np.bincount(labels_N[labels_N >= 0])
    return bool(sizes.max() <= _BODY_SHARE * len(labels_N) and (labels_N < 0).mean() <= _NOISE_SHARE)

"""What the embed job asks a cluster for; no cluster is started."""

from __future__ import annotations

import pytest

from damage_atlas.spec import EmbedSpec
from workers.embed import PoolSize, pool_size


@pytest.mark.parametrize(
    ("spec", "parts", "cpus", "gpus", "wanted"),
    [
        (EmbedSpec(actors=2), 10, [2], 0, PoolSize(fewest=2, most=2, threads=1, actor_cpus=1)),
        (EmbedSpec(actors=8), 10, [2], 0, PoolSize(fewest=2, most=8, threads=1, actor_cpus=1)),
        (EmbedSpec(actors=8), 3, [16], 0, PoolSize(fewest=3, most=3, threads=1, actor_cpus=1)),
        (EmbedSpec(actors=2, threads_per_actor=8), 10, [2], 0, PoolSize(fewest=1, most=2, threads=2, actor_cpus=2)),
        (EmbedSpec(actors=4), 10, [16], 2, PoolSize(fewest=2, most=2, threads=1, actor_cpus=0)),
        (EmbedSpec(actors=1, threads_per_actor=8), 10, [8], 1, PoolSize(fewest=1, most=1, threads=8, actor_cpus=0)),
        (EmbedSpec(actors=2), 10, [1], 1, PoolSize(fewest=1, most=1, threads=1, actor_cpus=0)),
        (EmbedSpec(actors=8), 10, [4, 4, 1], 0, PoolSize(fewest=8, most=8, threads=1, actor_cpus=1)),
        (EmbedSpec(actors=8, threads_per_actor=2), 10, [3, 3, 3, 3], 0, PoolSize(4, 8, threads=2, actor_cpus=2)),
        (EmbedSpec(actors=4, threads_per_actor=8), 10, [4, 2], 0, PoolSize(1, 4, threads=4, actor_cpus=4)),
    ],
)
def test_actors_fit_the_cluster_and_leave_room_for_decoding(
    spec: EmbedSpec, parts: int, cpus: list[int], gpus: int, wanted: PoolSize
) -> None:
    pool = pool_size(spec, parts, cpus, gpus)
    assert pool == wanted
    assert pool.fewest * pool.actor_cpus <= sum(cpus) and pool.threads <= max(cpus)
    if gpus:
        assert pool.fewest * pool.actor_cpus + pool.threads <= sum(cpus), "decoding would wait for the actors for ever"

"""Sums over ranks that `torch.distributed` has joined: as a tree over neighbours, the same bits on all ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infra.local.processes import free_ports

RANK = """
import sys
import numpy as np, torch
import torch.distributed as dist
from damage_atlas.train.loop import Distributed

rank, world, workers, out = *map(int, sys.argv[1:4]), sys.argv[4]
dist.init_process_group("gloo", rank=rank, world_size=world)
group = None if workers == world else dist.new_group(list(range(workers)))
if rank < workers:  # of an elastic training, one more may have no whole shard
    values = torch.from_numpy(np.random.default_rng(rank).normal(size=10_001).astype(np.float32))
    exchange = Distributed(rank, workers, group)
    assert exchange.gather(torch.tensor([rank])).tolist() == list(range(workers))
    np.save(f"{out}/{rank}.npy", exchange.add(values).numpy())
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("world", "workers"), [(3, 3), (4, 4), (3, 2)])
def test_sums_are_the_same_on_all_ranks(world: int, workers: int, tmp_path: Path) -> None:
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(world), str(workers), str(tmp_path)], env=env)
        for rank in range(world)
    ]
    assert [rank.wait(120) for rank in ranks] == [0] * world
    sums = [np.load(tmp_path / f"{rank}.npy") for rank in range(workers)]
    parts = [np.random.default_rng(rank).normal(size=10_001).astype(np.float32) for rank in range(workers)]
    assert all(np.array_equal(sums[0], other) for other in sums)
    if workers == 2:
        assert np.array_equal(sums[0], parts[0] + parts[1])
    elif workers == 4:
        assert np.array_equal(sums[0], (parts[0] + parts[1]) + (parts[2] + parts[3])), "to the last bit"
    else:
        assert np.allclose(sums[0], sum(parts), rtol=1e-5, atol=1e-6)

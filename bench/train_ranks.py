"""Training on several processes of this machine, without Ray: the worker's exchange over torch.distributed (gloo).

    python -m bench.train_ranks RUN --workers 2

What bench.train_kills strikes where starting Ray's workers twenty times would take too long. When a rank dies, all are
killed and started again, as Ray Train does it; the ranks die with this process, as Ray's do with their driver.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
from multiprocessing.connection import wait
from pathlib import Path

import torch.distributed as dist

from damage_atlas.store import Run
from damage_atlas.train import train_rank
from workers.logs import log_to_stdout
from workers.train import RankExchange

_RESTARTS = 3
_PR_SET_PDEATHSIG = 1


class ProcessExchange(RankExchange):
    """The worker's exchange; only who is who comes from torch.distributed instead of Ray."""

    def __init__(self) -> None:
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_rank(run_uri: str, attempt: int, rank: int, workers: int, meeting_place: str) -> None:
    die_with_parent()
    log_to_stdout()
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=workers)
    print(f"(pid={os.getpid()}) train: rank {rank} of {workers}", flush=True)
    train_rank(Run.load(run_uri, attempt), ProcessExchange())
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_uri")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    die_with_parent()
    # fork, after the imports: a rank that is started again starts at once.
    context = multiprocessing.get_context("fork")
    for _ in range(1 + _RESTARTS):
        with tempfile.TemporaryDirectory(prefix="damage-atlas-ranks-") as folder:
            place = str(Path(folder) / "meeting")
            asked = (arguments.run_uri, arguments.attempt)
            ranks = [
                context.Process(target=run_rank, args=(*asked, rank, arguments.workers, place))
                for rank in range(arguments.workers)
            ]
            for process in ranks:
                process.start()
            waiting = {process.sentinel: process for process in ranks}
            while waiting and all(process.exitcode in (None, 0) for process in ranks):
                for sentinel in wait(list(waiting)):
                    waiting.pop(sentinel).join()  # type: ignore[index]
            for process in ranks:
                process.kill()
                process.join()
        if all(process.exitcode == 0 for process in ranks):
            return
    sys.exit(1)


if __name__ == "__main__":
    main()

"""Train by Ray Train: one process per GPU, or per CPU worker; rank 0 writes checkpoints and the model version."""

from __future__ import annotations

import logging
from typing import Any

import ray
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, get_device

from damage_atlas.contracts import Artifact
from damage_atlas.errors import AtlasError
from damage_atlas.spec import TrainSpec
from damage_atlas.store import Run
from damage_atlas.train import labelled_images, sealed_training, train_rank
from damage_atlas.train.loop import Distributed
from damage_atlas.train.start import new_network
from workers.job import about, run_job
from workers.logs import log_to_stdout
from workers.on_ray import connect, largest_node_cpus
from workers.progress import export_progress

logger = logging.getLogger("workers.train")

_RESTARTS = 3  # of the worker group after a crash; each goes on from the newest checkpoint
_ELASTIC_RESTARTS = 20  # there every node that leaves counts as one


class RankExchange(Distributed):
    """The library's `Exchange` among the ranks of Ray Train.

    Args:
        workers: the first so many of them talk; null: all.
    """

    def __init__(self, workers: int | None = None) -> None:
        rank, world = get_context().get_world_rank(), get_context().get_world_size()
        group = None if workers in (None, world) else dist.new_group(list(range(workers or world)))
        super().__init__(rank, workers or world, group)


def run_rank(config: dict[str, Any]) -> None:
    """What every rank runs."""
    run = Run.load(config["run_uri"], config["attempt"])
    log_to_stdout(about(run, "train"))
    export_progress(run.spec.archive)
    world = get_context().get_world_size()
    exchange = RankExchange(most_ranks(run.spec.settings.train.shards, world))
    logger.info("train: rank %d of %d on node %s", exchange.rank, world, ray.get_runtime_context().get_node_id()[:8])
    if exchange.rank >= exchange.workers:
        logger.info("train: rank %d has no whole shard, and waits for more ranks or fewer", exchange.rank)
        return
    train_rank(run, exchange, get_device())


def choose_ranks(spec: TrainSpec, gpus: int) -> int:
    """As many ranks as ``train.workers`` says; with GPUs at most one for each, a whole number of shards for every one.

    A rank on a GPU is faster than several on CPUs, and the shards make the same batches of them.
    """
    return most_ranks(spec.shards, min(spec.workers, gpus or spec.workers))


def most_ranks(shards: int, most: int) -> int:
    """As many ranks as take a whole number of shards each."""
    return max(n for n in range(1, most + 1) if shards % n == 0)


def work(run: Run) -> Artifact:
    """Train with as many workers as the spec says, on GPUs where the cluster has any."""
    spec = run.spec.settings.train
    # Both here, because every rank would fail alike, and Ray Train would start them again and again.
    labelled_images(run)
    new_network(spec.model_copy(update={"module_weights": None}))  # whose file need only be where ranks run
    connect()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    ranks, on_gpu = choose_ranks(spec, gpus), gpus > 0
    if not on_gpu:
        logger.info("train: on CPUs, since the cluster has no GPU")
    fewest = None if spec.fewest_workers is None else min(spec.fewest_workers, gpus or spec.fewest_workers)
    if fewest is not None:
        logger.info("train: with %d to %d ranks, as they come and go", fewest, spec.workers)
    elif ranks < spec.workers:
        logger.info("train: on %d ranks of %d that train.workers asks for, with %d GPUs", ranks, spec.workers, gpus)
    filesystem, root = run.store.arrow_filesystem()
    of_each = spec.shards // (ranks if fewest is None else spec.workers)
    cpus = min(spec.threads_per_shard * of_each, largest_node_cpus())
    trainer = TorchTrainer(
        run_rank,
        train_loop_config={"run_uri": run.uri, "attempt": run.attempt},
        scaling_config=ScalingConfig(
            # What comes within the minute is taken in; the group then begins anew, at the newest checkpoint.
            num_workers=ranks if fewest is None else (fewest, spec.workers),
            use_gpu=on_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if on_gpu else {})},
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(
            # Ray's own notes on the job; checkpoints are ours and lie beside the model.
            name=f"attempt-{run.attempt:03d}",
            storage_filesystem=filesystem,
            storage_path=f"{root}/models/{run.spec.model}/{run.spec.run_id}/ray",
            failure_config=FailureConfig(max_failures=_RESTARTS if fewest is None else _ELASTIC_RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        if (cause := _library_error(error)) is not None:
            raise cause from error
        raise
    return sealed_training(run)


def _library_error(error: BaseException | None) -> AtlasError | None:
    """The library's error inside Ray's wrappers, so that what, where and what next reach the reader."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, AtlasError):
            return current
        failures = getattr(current, "worker_failures", None) or {}
        queue += [current.__cause__, current.__context__, getattr(current, "cause", None), *failures.values()]
    return None


if __name__ == "__main__":
    run_job("train", work)

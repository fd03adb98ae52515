"""Embed by Ray Data: parts stream through a pool of actors, each with the network loaded once."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from damage_atlas.contracts import Artifact, Output
from damage_atlas.embed import (
    DecodedPart,
    ForwardPart,
    PartResult,
    VectorPart,
    decoder_of,
    embed_archive,
    embed_in_threads,
)
from damage_atlas.spec import EmbedSpec
from damage_atlas.store import Run
from workers.job import run_job
from workers.on_ray import connect, node_cpus, own_errors

logger = logging.getLogger("workers.embed")

_ACTORS_READY_S = 600  # how long the pool may take to start; without waiting, the first actor takes all parts


def decode_rows(batch: dict[str, Any], run_uri: str) -> dict[str, Any]:
    """Decode parts, one a row; tasks of one process share what they need for it."""
    decoded = [decoder_of(run_uri)(_part(text)) for text in batch["part"]]
    return {
        "part": np.array([json.dumps([d.key, d.image_ids, d.failed, d.is_stored]) for d in decoded]),
        "pixels": np.stack([d.pixels_NSSC for d in decoded]),
    }


def _part(text: str) -> VectorPart:
    part = json.loads(text)
    return VectorPart(part["key"], Output(**part["wanted"]), part["number"], part["size"])


class ForwardActor:
    """Embeds decoded parts and puts them into the store; vectors do not travel at all."""

    def __init__(self, run_uri: str, device: str) -> None:
        self.forward = ForwardPart(run_uri, device)
        self.node = ray.get_runtime_context().get_node_id()
        self.actor = ray.get_runtime_context().get_actor_id()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed the parts of a block."""
        results = []
        for text, pixels in zip(batch["part"], batch["pixels"], strict=True):
            key, image_ids, failed, is_stored = json.loads(text)
            result = self.forward(DecodedPart(key, image_ids, pixels, failed, is_stored))
            output = None if result.output is None else result.output.model_dump()
            results.append(json.dumps({"key": key, "output": output, "failed": result.failed}))
        count = len(results)
        return {
            "result": np.array(results),
            "node": np.array([self.node] * count),
            "actor": np.array([self.actor] * count),
        }


@dataclass(frozen=True)
class PoolSize:
    """What decoding and the actors ask the cluster for.

    Attributes:
        fewest: actors that the cluster has room for now, which are waited for; others may come when it grows.
        threads: CPUs of a task that decodes.
        actor_cpus: CPUs that an actor keeps as long as it lives. On a GPU none: actors that kept them all would leave
            none to decode with, and wait for ever.
    """

    fewest: int
    most: int
    threads: int
    actor_cpus: int


def pool_size(spec: EmbedSpec, parts: int, cpus: Sequence[int], gpus: int) -> PoolSize:
    """The pool for so many parts.

    Args:
        cpus: of each node of the cluster.
        gpus: of all of them.
    """
    threads = min(spec.threads_per_actor, max(cpus, default=1))
    if gpus:
        most = min(spec.actors, parts, gpus)
        return PoolSize(most, most, threads, 0)
    most = min(spec.actors, parts)
    room = sum(each // threads for each in cpus)
    return PoolSize(max(min(most, room), 1), most, threads, threads)


def embed_on_ray(run: Run, parts: Sequence[VectorPart]) -> Iterator[PartResult]:
    """Embed parts by Ray Data; results in any order. Each part is a block of its own, lost ones are redone.

    Parts are decoded by tasks wherever there are CPUs, and forwarded by a pool of actors, one for each GPU; Ray Data
    holds decoding back while the actors are behind. Without GPUs it makes one step of both: nothing has to travel.
    A few images are embedded here, on this machine's CPUs.
    """
    spec = run.spec.settings.embed
    if sum(part.size for part in parts) <= spec.in_job_up_to:
        yield from embed_in_threads(run, parts)
        return
    connect()
    context = DataContext.get_current()
    context.enable_progress_bars = False  # our own line per interval says more
    context.raise_original_map_exception = True  # in place of one that only says where
    context.wait_for_min_actors_s = _ACTORS_READY_S
    context.target_max_block_size = None  # a part stays in one piece
    cluster = ray.cluster_resources()
    on_gpu = cluster.get("GPU", 0) >= 1
    pool = pool_size(spec, len(parts), node_cpus(), gpus=int(cluster.get("GPU", 0)))
    items = [{"part": json.dumps({**asdict(part), "wanted": part.wanted.model_dump()})} for part in parts]
    results = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(decode_rows, batch_size=1, fn_kwargs={"run_uri": run.uri}, num_cpus=pool.threads)
        .map_batches(
            ForwardActor,
            batch_size=1,
            fn_constructor_args=(run.uri, "cuda" if on_gpu else "cpu"),
            # One part at a time: what is queued at one actor while another idles would be waited for.
            compute=ActorPoolStrategy(min_size=pool.fewest, max_size=pool.most, max_tasks_in_flight_per_actor=1),
            num_cpus=pool.actor_cpus,
            num_gpus=1 if on_gpu else None,
        )
    )
    nodes, actors = Counter[str](), Counter[str]()
    with own_errors():
        for row in results.iter_rows():
            nodes[row["node"]] += 1
            actors[row["actor"]] += 1
            document = json.loads(str(row["result"]))
            output = None if document["output"] is None else Output(**document["output"])
            yield PartResult(document["key"], output, tuple(document["failed"]))
    logger.info("embed: %d parts by %d actors on %d nodes", len(parts), len(actors), len(nodes))


def work(run: Run) -> Artifact:
    """Run the stage on the cluster."""
    return embed_archive(run, embed_on_ray)


if __name__ == "__main__":
    run_job("embed", work)

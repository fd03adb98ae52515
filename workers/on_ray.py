"""The library's `MapParts` on Ray tasks, spread over the nodes."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from damage_atlas.errors import AtlasError
from damage_atlas.parts import map_in_threads
from workers.logs import log_context, log_to_stdout

logger = logging.getLogger("workers.on_ray")

_AHEAD = 4  # parts in flight for each CPU: enough to keep workers busy, few enough to bound memory
# As long as a busy machine takes to start tasks' processes, and no more of the node's cores than a job may use unasked.
HEAD_START_S = 10.0
HEAD_START_THREADS = 2


def connect() -> None:
    """Join the cluster that runs this job."""
    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=True, logging_level="WARNING")


def node_cpus() -> list[int]:
    """CPUs of each node that has any; what asks for more than the largest has waits for ever."""
    connect()
    return [int(node["Resources"]["CPU"]) for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def largest_node_cpus() -> int:
    """CPUs of the node that has most."""
    return max(node_cpus(), default=1)


def map_on_ray(function: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
    """Map ``function`` over ``parts`` as Ray tasks, results in order; a task that is lost with its node is redone.

    A single part is worked through here: a task's process takes longer to start.
    """
    if len(parts) <= 1:
        yield from map(function, parts)
        return
    connect()
    shared = ray.put(function)
    window = max(int(ray.cluster_resources().get("CPU", 1)) * _AHEAD, 1)
    pending: deque[Any] = deque()
    nodes: Counter[str] = Counter()
    upcoming = iter(parts)

    def fill() -> None:
        while len(pending) < window and (part := next(upcoming, None)) is not None:
            pending.append(_apply.remote(shared, part, log_context()))

    fill()
    while pending:
        node, result = _get(pending.popleft())
        nodes[node] += 1
        fill()
        yield result
    if nodes:
        logger.info("%d parts on %d nodes %s", sum(nodes.values()), len(nodes), sorted(nodes.values()))


def map_with_head_start(function: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
    """As :func:`map_on_ray`, but the job itself begins: what is small is done before any process would have started."""
    give_over_at = time.monotonic() + HEAD_START_S
    done = 0
    while done < len(parts) and time.monotonic() < give_over_at:
        batch = parts[done : done + HEAD_START_THREADS]
        yield from map_in_threads(function, batch)
        done += len(batch)
    yield from map_on_ray(function, parts[done:])


def call_on_ray(function: Callable[..., Any], *arguments: Any, num_cpus: int = 1) -> Any:
    """Call ``function`` once, as a Ray task with ``num_cpus`` reserved."""
    connect()
    return _get(_call.options(num_cpus=num_cpus).remote(function, arguments, log_context()))


@ray.remote(num_cpus=1, max_retries=3, scheduling_strategy="SPREAD")
def _apply(function: Callable[[Any], Any], part: Any, context: dict[str, str]) -> tuple[str, Any]:
    log_to_stdout(context)
    return ray.get_runtime_context().get_node_id(), function(part)


@ray.remote(max_retries=3)
def _call(function: Callable[..., Any], arguments: tuple[Any, ...], context: dict[str, str]) -> Any:
    log_to_stdout(context)
    return function(*arguments)


@contextmanager
def own_errors() -> Iterator[None]:
    """The library's own errors arrive wrapped; what, where and whether a retry helps must survive."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AtlasError):
            raise error.cause from error
        raise


def _get(reference: Any) -> Any:
    with own_errors():
        return ray.get(reference)

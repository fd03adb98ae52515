"""Ray and Airflow together on this machine, wired to each other, to the DAGs, and to a store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.local.airflow import LocalAirflow
from infra.local.ray_cluster import LocalRay

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class LocalStack:
    """What runs."""

    ray: LocalRay
    airflow: LocalAirflow


@contextlib.contextmanager
def local_stack(
    root: Path,
    store: str,
    data: Path | None = None,
    archives: Path | None = None,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
    nodes: int = 2,
    dags: Path = REPOSITORY / "dags",
    database: str | None = None,
) -> Iterator[LocalStack]:
    """Start a Ray and an Airflow, by default with the project's DAGs; stop both at the end, whatever happens.

    Args:
        root: where databases, secrets and logs go.
        store: the store's root, for Airflow and Ray alike.
        data: what relative folders in archive files are relative to; ``var/`` by default.
        archives: folder of archive files; ``infra/archives`` by default.
        env: further variables for both sides (AWS_…).
        say: told when each is up.
        nodes: of Ray, the head among them.
        dags: folder of DAG files.
        database: of Airflow, as an address for SQLAlchemy; by default a file of SQLite's below ``root``.
    """
    shared = {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "lib")]),
        "DAMAGE_ATLAS_STORE": store,
        "DAMAGE_ATLAS_DATA": str(data or REPOSITORY / "var"),
        "DAMAGE_ATLAS_ARCHIVES": str(archives or REPOSITORY / "infra" / "archives"),
        **(env or {}),
    }
    # One CPU a node: every further one is a process that Ray starts ahead of work, and a laptop has few cores.
    with LocalRay(root / "ray", nodes=nodes, cpus_per_node=1, env=shared) as ray:
        say(f"Ray is up: a head and {nodes - 1} further node{'s' if nodes != 2 else ''}")
        plugins = REPOSITORY / "infra" / "airflow" / "plugins"
        with LocalAirflow(
            root / "airflow",
            dags,
            plugins if plugins.is_dir() else None,
            env={**shared, **ray.airflow_env},
            port=port,
            database=database,
        ) as airflow:
            say("Airflow is up")
            yield LocalStack(ray, airflow)

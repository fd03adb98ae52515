"""Cluster on Ray: one task with the CPUs that the map's threads need, as far as a node has them."""

import ray

from damage_atlas.cluster import cluster_map
from damage_atlas.contracts import Artifact
from damage_atlas.store import Run
from workers.job import run_job
from workers.on_ray import call_on_ray, connect


def work(run: Run) -> Artifact:
    """Run the stage as one Ray task; more CPUs than any node has would wait for ever."""
    connect()
    largest = max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
    artifact: Artifact = call_on_ray(cluster_map, run, num_cpus=min(run.spec.settings.cluster.threads, int(largest)))
    return artifact


if __name__ == "__main__":
    run_job("cluster", work)

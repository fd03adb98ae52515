"""Cluster on Ray: one task with the CPUs that the map's threads need, as far as a node has them."""

from damage_atlas.cluster import cluster_map
from damage_atlas.contracts import Artifact
from damage_atlas.store import Run
from workers.job import run_job
from workers.on_ray import call_on_ray, largest_node_cpus


def work(run: Run) -> Artifact:
    """Run the stage on the cluster."""
    cpus = min(run.spec.settings.cluster.threads, largest_node_cpus())
    artifact: Artifact = call_on_ray(cluster_map, run, num_cpus=cpus)
    return artifact


if __name__ == "__main__":
    run_job("cluster", work)

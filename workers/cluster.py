"""Cluster on Ray: one task with the CPUs that the map's threads need."""

from damage_atlas.cluster import cluster_map
from workers.job import run_job
from workers.on_ray import call_on_ray

if __name__ == "__main__":
    run_job("cluster", lambda run: call_on_ray(cluster_map, run, num_cpus=run.spec.settings.cluster.threads))

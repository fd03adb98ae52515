"""Explain on Ray: batches of pictures are drawn and explained by tasks on all nodes."""

from damage_atlas.explain import explain_clusters
from workers.job import run_job
from workers.on_ray import map_on_ray

if __name__ == "__main__":
    run_job("explain", lambda run: explain_clusters(run, map_on_ray))

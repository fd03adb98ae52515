"""Explain on Ray: batches of pictures are drawn and explained by the job, many of them by tasks on all nodes."""

from damage_atlas.contracts import Artifact
from damage_atlas.explain import explain_clusters
from damage_atlas.store import Run
from workers.job import run_job
from workers.on_ray import map_with_head_start


def work(run: Run) -> Artifact:
    """Run the stage on the cluster."""
    return explain_clusters(run, map_with_head_start)


if __name__ == "__main__":
    run_job("explain", work)

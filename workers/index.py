"""Index on Ray: the shards of a large index are filled by tasks on all nodes, and merged here."""

from damage_atlas.contracts import Artifact
from damage_atlas.index import build_index
from damage_atlas.store import Run
from workers.job import run_job
from workers.on_ray import map_on_ray


def work(run: Run) -> Artifact:
    """Run the stage on the cluster."""
    return build_index(run, map_on_ray)


if __name__ == "__main__":
    run_job("index", work)

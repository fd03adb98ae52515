"""Index on Ray: one task builds the index and measures its recall."""

from damage_atlas.contracts import Artifact
from damage_atlas.index import build_index
from damage_atlas.store import Run
from workers.job import run_job
from workers.on_ray import call_on_ray


def work(run: Run) -> Artifact:
    """Run the stage on the cluster."""
    artifact: Artifact = call_on_ray(build_index, run)
    return artifact


if __name__ == "__main__":
    run_job("index", work)

"""Report on Ray: hover pictures are made by the job, many of them by tasks on all nodes; the page by the job itself."""

from damage_atlas.contracts import Artifact
from damage_atlas.report import write_report
from damage_atlas.store import Run
from workers.job import run_job
from workers.on_ray import map_with_head_start


def work(run: Run) -> Artifact:
    """Run the stage on the cluster."""
    return write_report(run, map_with_head_start)


if __name__ == "__main__":
    run_job("report", work)

"""Publish: digests are checked on threads of the job itself; what counts is the one record it creates."""

from damage_atlas.contracts import Artifact
from damage_atlas.publish import publish_run
from damage_atlas.store import Run
from workers.job import run_job


def work(run: Run) -> Artifact:
    """Run the stage in this process."""
    return publish_run(run)


if __name__ == "__main__":
    run_job("publish", work)

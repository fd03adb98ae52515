"""Catalog on Ray: parts of the listing are read, hashed and checked by tasks on all nodes."""

from damage_atlas.catalog import build_catalog
from damage_atlas.contracts import Artifact
from damage_atlas.store import Run
from workers.job import run_job
from workers.on_ray import map_on_ray


def work(run: Run) -> Artifact:
    """Run the stage on the cluster."""
    return build_catalog(run, map_on_ray)


if __name__ == "__main__":
    run_job("catalog", work)

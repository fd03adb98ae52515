"""Catalog on Ray: parts of the listing are read, hashed and checked by tasks on all nodes; a few files by the job."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from damage_atlas.catalog import build_catalog
from damage_atlas.contracts import Artifact
from damage_atlas.parts import map_in_threads
from damage_atlas.store import Run
from workers.job import run_job
from workers.on_ray import map_on_ray


def work(run: Run) -> Artifact:
    """Run the stage on the cluster."""
    most = run.spec.settings.catalog.in_job_up_to_mib << 20

    def map_files(check: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
        few = sum(file.size_bytes or 0 for files in parts for file in files) <= most
        return map_in_threads(check, parts) if few else map_on_ray(check, parts)

    return build_catalog(run, map_files)


if __name__ == "__main__":
    run_job("catalog", work)

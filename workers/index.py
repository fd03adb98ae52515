"""Index on Ray: one task builds the index and measures its recall."""

from damage_atlas.index import build_index
from workers.job import run_job
from workers.on_ray import call_on_ray

if __name__ == "__main__":
    run_job("index", lambda run: call_on_ray(build_index, run))

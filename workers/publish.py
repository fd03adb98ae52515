"""Publish: digests are checked on threads of the job itself; what counts is the one record it creates."""

from damage_atlas.publish import publish_run
from workers.job import run_job

if __name__ == "__main__":
    run_job("publish", publish_run)

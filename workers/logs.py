"""What jobs, tasks and ranks print: Ray shows it in the job's log, and the bridge in Airflow's."""

from __future__ import annotations

import logging
import sys


def log_to_stdout() -> None:
    """Send the library's and the workers' progress to standard output; safe to call again."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stdout)
    for name in ("damage_atlas", "workers"):
        logging.getLogger(name).setLevel(logging.INFO)

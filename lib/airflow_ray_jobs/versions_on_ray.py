"""Compares what is installed on Ray's side with what Airflow's side has, before the work of a job.

Sent to the job as text and run by its ``python``, so it uses the standard library alone; see ``preflight.py``.
"""

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version


def installed(name: str) -> str:
    """Version of a distribution here, or of Python (major and minor); ``none`` when it is not here."""
    if name == "python":
        return "{}.{}".format(*sys.version_info)
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def main() -> None:
    """Say in one line that all is well, or fail the job for good."""
    wanted = json.loads(os.environ["RAY_JOB_VERSIONS"])
    wrong = [
        f"{name} is {there} in Airflow and {here} on Ray"
        for name, there in wanted.items()
        if (here := installed(name)) != there
    ]
    if wrong:
        message = "; ".join(wrong) + ". Install the same on both sides, then clear the task."
        print("RAY_JOB_FAILURE " + json.dumps({"retryable": False, "message": message}), flush=True)
        sys.exit(2)
    print("Same versions in Airflow and on Ray: " + ", ".join(f"{k} {v}" for k, v in wanted.items()), flush=True)


if __name__ == "__main__":
    main()

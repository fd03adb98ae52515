"""`make airflow`: the embedded Ray and Airflow, left running for a person until Ctrl-C."""

from __future__ import annotations

import sys
import time

from infra.local.processes import LocalServiceError
from infra.local.stack import REPOSITORY, local_stack

_PORT = 8080


def main() -> None:
    """Start both, print where to log in, and wait."""
    folder = REPOSITORY / "var" / "demo"
    try:
        with local_stack(
            folder, store=str(folder / "store"), port=_PORT, say=lambda text: print(text, flush=True)
        ) as stack:
            airflow = stack.airflow
            print(
                f"\n  {airflow.url}   user {airflow.user}   password {airflow.password}\n\n"
                "  DAGs start paused: switch one on, then trigger it. The demo's images come from `make demo`,\n"
                "  or `damage-atlas demo --images-only`. Ctrl-C stops everything.\n",
                flush=True,
            )
            while True:
                time.sleep(3600)
    except LocalServiceError as error:
        sys.exit(f"airflow: {error}")
    except KeyboardInterrupt:
        print("\nstopped; nothing is left running")


if __name__ == "__main__":
    main()

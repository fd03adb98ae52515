"""Health check of a container: ``python ready.py URL [COMPONENT]``, exit code 0 when ready.

Without a component the URL has to answer 200. With one, the answer is Airflow's monitor page and that component
(scheduler, triggerer, dag_processor) has to be healthy there: it writes its heartbeat into the database, so this
costs a tenth of a second where ``airflow jobs check`` loads all of Airflow for several.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request


def main(url: str, component: str | None = None) -> str | None:
    """What is wrong, in one line; None when ready."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            body = answer.read()
    except (OSError, urllib.error.URLError) as error:
        return f"{url}: {error}"
    if component is None:
        return None
    status = json.loads(body)[component]["status"]
    return None if status == "healthy" else f"{url}: {component} is {status}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""What jobs, tasks and ranks print: Ray shows it in the job's log, and the bridge in Airflow's.

With DAMAGE_ATLAS_LOG=json each line is a JSON object that says as well which run and stage it is about.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

_context: dict[str, str] = {}


def log_to_stdout(context: dict[str, str] | None = None) -> None:
    """Send the library's and the workers' progress to standard output; safe to call again.

    Args:
        context: what every line of this process is about from now on; None: as before.
    """
    if context is not None:
        _context.clear()
        _context.update(context)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines() if os.environ.get("DAMAGE_ATLAS_LOG") == "json" else _TEXT)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("damage_atlas", "workers"):
        ours = logging.getLogger(name)
        ours.setLevel(logging.INFO)
        # Not through the root logger: in a rank Ray Train has put handlers of its own there before us.
        ours.handlers, ours.propagate = [handler], False


def log_context() -> dict[str, str]:
    """What this process logs about, for the tasks that it starts elsewhere."""
    return dict(_context)


_TEXT = logging.Formatter("%(asctime)s %(message)s")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **_context,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)

"""Thin Ray entry points, one a stage: `python -m workers.<stage> RUN --attempt N`. The only code that imports ray."""

import os

# Read by Ray when it is imported: colours have no meaning in the log of a job.
os.environ.setdefault("RAY_COLOR_PREFIX", "0")

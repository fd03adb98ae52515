"""Thin Ray entry points, one a stage: `python -m workers.<stage> RUN --attempt N`. The only code that imports ray."""

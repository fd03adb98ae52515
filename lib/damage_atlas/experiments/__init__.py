"""Experiments that span stages: each is a command that prints what docs/results.md quotes.

data.py         labelled images, split and decoded as for a run
log.py          a line for each measurement, found again by what was measured
subclasses.py   classes merged, and how well what was merged is found again
baselines.py    other losses on the same network, and features without learning
plots.py        the figures of their tables
visits.py       how many badly damaged assets the top of the visit list finds
"""

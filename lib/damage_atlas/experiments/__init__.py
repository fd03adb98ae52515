"""Experiments that span stages: each is a command that prints what docs/results.md quotes.

data.py         labelled images, split and decoded as for a run
log.py          a line for each measurement, found again by what was measured
subclasses.py   classes merged, and how well what was merged is found again
baselines.py    other losses on the same network, and features without learning
plots.py        the figures of their tables
alerts.py       alert rates on steel-neu by the size of a group of something new
deliveries.py   ten deliveries of the demo archive: which images keep their id
planted.py      a planted kind of the demo: alerts, and the queue of noise
promotion.py    a new model and a map fitted anew: which images keep their id
seeds.py        one archive over seeds of t-SNE, by `paper` and by `auto`
staged.py       an archive whose vectors are there already
steel.py        steel-neu with one class left out of training
visits.py       how many badly damaged assets the top of the visit list finds
"""

"""A procedural inspection archive whose truth is known: images, hidden sub-modes, planted trouble.

Read in this order: `textures` (surfaces), `damage` (one painter per hidden mode), `camera` (light to pixels),
`plan` (which file shows what), `render` (files), `planted` (duplicates, broken and odd files), `make` (all),
`runs` (every stage on it), `truth` (how what was found compares with what is there).
"""

from damage_atlas.demo.damage import MODES, NEW_KIND
from damage_atlas.demo.make import TRUTH_COLUMNS, DemoSummary, make_demo

__all__ = ["MODES", "NEW_KIND", "TRUTH_COLUMNS", "DemoSummary", "make_demo"]

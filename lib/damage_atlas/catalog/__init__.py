"""Stage 1, catalog: what is there, and what of it can be used.

listing.py  names of the files, and nothing from outside the folder
check.py    reads, hashes and decodes them, part by part
tiling.py   where large photos are cut
rows.py     observations: names, tiles, duplicates, contradictions
groups.py   what must not straddle a split
splits.py   train and test
build.py    the stage
"""

from damage_atlas.catalog.build import build_catalog

__all__ = ["build_catalog"]

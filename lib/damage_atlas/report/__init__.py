"""The report: one self-contained page, figures, a JSON twin, and a first ranking of assets.

facts.py      everything the report states; the page and report.json both show exactly this
gather.py     reads the sealed stages and works the facts out
changes.py    what became of the previous version's clusters, in sentences
assets.py     which assets to look at first
sampling.py   which points are drawn, and in which order
thumbnails.py hover pictures, packed into sheets
figures.py    the paper's figures as PNG
palette.py    colours and shapes that stay with a cluster
page.py       the page: template, style and script of page/, put together under a content security policy
"""

from damage_atlas.report.write import write_report

__all__ = ["write_report"]

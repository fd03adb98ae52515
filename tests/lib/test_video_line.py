"""A sewer crawl as a video goes through every stage, and every picture leads back to its second."""

from __future__ import annotations

from pathlib import Path

from damage_atlas.store import Store
from tests.support.crawl import check_crawl, film_crawl


def test_a_sewer_video_goes_through_to_the_report(real_data: Path, tmp_path: Path) -> None:
    film_crawl(real_data, tmp_path / "archive" / "pipe-12", seconds=60)
    check_crawl(Store(tmp_path / "store"), str(tmp_path / "archive"), tmp_path, seconds=60)

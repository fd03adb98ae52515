"""A sewer crawl of 2,000 seconds, video and store on a real S3 server that goes away and spoils its answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from damage_atlas.store import Store
from tests.support.crawl import check_crawl, film_crawl
from tests.support.line import WHEN_ASKED
from tests.support.s3_server import S3Server, take_away

pytestmark = [WHEN_ASKED, pytest.mark.s3, pytest.mark.data, pytest.mark.timeout(1500)]

SECONDS = 2000


def test_a_video_on_an_unsteady_server(
    real_data: Path, unsteady_bucket: str, s3_server: S3Server, tmp_path: Path
) -> None:
    film_crawl(real_data, tmp_path / "pipe-12", SECONDS)
    images = Store(f"s3://{unsteady_bucket}/images")
    for file in sorted((tmp_path / "pipe-12").iterdir()):
        images.create_same(f"pipe-12/{file.name}", file.read_bytes())
    store = Store(f"s3://{unsteady_bucket}/store")
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(check_crawl, store, images.root, tmp_path, SECONDS)
        take_away(s3_server, store, once_there="archives/sewer/files")  # catalogued, not yet embedded
        checked.result()

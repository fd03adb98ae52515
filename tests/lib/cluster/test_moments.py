"""Moments: what counts once, and what does not though its times are equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from damage_atlas.catalog import build_catalog
from damage_atlas.cluster.moments import moments_of
from tests.support.image_archive import Archive, jpeg, put


@pytest.mark.parametrize(("times", "moments"), [
    (["2026-03-14"] * 4, 4),  # a day alone: each picture is a moment of its own
    (["2026-03-14T09:00:01", "2026-03-14T09:00:03", "2026-03-14T09:00:04", "2026-03-14T09:02:00"], 2),
    (["2026-03-14T00:00:00+02:00"] * 4, 4),  # as pandas writes a day
    ([""] * 4, 4),
])  # fmt: skip
def test_pictures_of_ten_seconds_are_one_moment_and_those_of_a_day_are_not(
    tmp_path: Path, times: list[str], moments: int
) -> None:
    archive = Archive(tmp_path)
    put(archive.images, {f"{i}.jpg": jpeg(i) for i in range(4)})
    lines = [f"{i}.jpg,pier 4,{taken}" for i, taken in enumerate(times)]
    put(archive.images, {"m.csv": "\n".join(["file,asset_id,captured_at", *lines]).encode()})
    run = archive.open(labels="none", manifest=str(archive.images / "m.csv"))
    build_catalog(run)
    assert len(set(moments_of(run).values())) == moments

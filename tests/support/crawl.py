"""A sewer crawl as a video, and what must come of it whatever it lies on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from damage_atlas.pipeline import run_pipeline, summarize
from damage_atlas.query import search
from damage_atlas.spec import Settings, with_overrides
from damage_atlas.store import Store, start_run
from tests.support.small_archive import make_labelled

RATE, SIZE = 5, (320, 240)


def film_crawl(real_data: Path, asset: Path, seconds: int) -> None:
    """A crawl and its side-car, half a metre a second."""
    pictures = sorted((real_data / "sewer-pipe").rglob("*.jpg"))
    assert 3 * len(pictures) >= seconds
    asset.mkdir(parents=True)
    # Longer than there are pictures: the next time round they are mirrored, then upside down, so that none comes twice.
    seen = itertools.product((ImageOps.exif_transpose, ImageOps.mirror, ImageOps.flip), pictures)
    _encode(asset / "crawl.mp4", (turn(Image.open(file)) for turn, file in itertools.islice(seen, seconds)))
    (asset / "crawl.csv").write_text(f"time_s,position_m\n0,0\n{seconds},{seconds / 2}\n")


def check_crawl(store: Store, images: str, tmp_path: Path, seconds: int) -> None:
    """Run all stages over ``images``; every picture leads back to its second, in tables, report and search."""
    fast = ["train.input_size=32", "train.iterations=10", "train.batch_size=24"]
    settings = with_overrides(Settings(), fast)
    labelled = make_labelled(tmp_path / "labelled", each=8)
    list(
        run_pipeline(
            start_run(store, kind="train", archive="sewer", images=str(labelled), model="m", settings=settings)
        )
    )
    settings = with_overrides(Settings(), [*fast, "catalog.labels=none"])
    run = start_run(store, kind="recluster", archive="sewer", images=images, model="m", settings=settings)
    list(run_pipeline(run))

    assert summarize(run)["counts"]["embedded"] == seconds
    rows = run.read_table("catalog", "observations.parquet").to_pylist()
    assert [row["frame_time_s"] for row in rows] == [float(second) for second in range(seconds)]
    assert [row["position_m"] for row in rows] == [second / 2 for second in range(seconds)]
    page = run.read("report", "index.html").decode()
    report = json.loads(run.read("report", "report.json"))
    assert "crawl.mp4 (at 0:42, 21 m)" in page, "hovering over a point tells its second and its chainage"
    shown = json.dumps(report)
    assert "crawl.mp4 (at " in shown
    found = search(store, "sewer", rows[42]["image_id"], k=1)[0]
    assert found["uri"].endswith("/pipe-12/crawl.mp4#t=42") and found["frame_time_s"] == 42


def _encode(path: Path, pictures: Iterable[Image.Image]) -> None:
    """Each frame for one second, as H.264."""
    with av.open(str(path), "w") as container:
        container.metadata["creation_time"] = "2026-03-01T09:00:00Z"
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for second, picture in enumerate(pictures):
            pixels = np.asarray(picture.convert("RGB").resize(SIZE))
            for part in range(RATE):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = second * RATE + part, Fraction(1, RATE)
                container.mux(stream.encode(frame))
        container.mux(stream.encode())

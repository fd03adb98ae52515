"""Pictures and store on a real S3 server that goes away, and that spoils its answers: nothing is lost or doubled.

`DAMAGE_ATLAS_LINE=1` makes it 2,000 images instead of 160.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from damage_atlas.embed import embed_archive
from damage_atlas.neighbours import read_vectors
from damage_atlas.pipeline import run_pipeline, run_stage
from damage_atlas.spec import Settings, with_overrides
from damage_atlas.store import Run, Store, start_run
from tests.support.faulty_proxy import FaultyProxy
from tests.support.s3_server import S3Server
from tests.support.small_archive import CLASSES, make_labelled, picture

pytestmark = [pytest.mark.s3, pytest.mark.timeout(1200)]

IMAGES = 2000 if os.environ.get("DAMAGE_ATLAS_LINE") else 160
FAST = ["train.input_size=32", "train.iterations=4", "train.batch_size=24", "embed.rows_per_part=16"]
FAST += ["catalog.files_per_part=16", "index.flat_up_to=100"]


def fill(images: Store) -> None:
    """Half of the images as files, half as members of a tar file."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for n in range(IMAGES):
            data = io.BytesIO()
            Image.fromarray(picture(CLASSES[n % 3], n)).save(data, "PNG")
            if n % 2:
                images.create(f"a{n % 4}/{n:05d}.png", data.getvalue())
            else:
                info = tarfile.TarInfo(f"b{n % 4}/{n:05d}.png")
                info.size = len(data.getvalue())
                tar.addfile(info, io.BytesIO(data.getvalue()))
    images.create("shard.tar", sink.getvalue())


def start(store: Store, root: str, run_id: str) -> Run:
    settings = with_overrides(Settings(), [*FAST, "catalog.labels=none"])
    return start_run(
        store, kind="recluster", archive="a", images=f"{root}/images", model="m", settings=settings, run_id=run_id
    )


def work(run: Run) -> Run:
    for stage in ("catalog", "embed", "index"):
        run_stage(run, stage)
    return run


def tables(run: Run) -> list[pa.Table]:
    catalog = run.read_table("catalog", "observations.parquet")
    ids, vectors = read_vectors(run)
    return [
        catalog.drop_columns("uri"),
        run.read_table("embed", "failed.parquet"),
        run.read_table("index", "ids.parquet"),
        pa.table({"id": ids, "vector": vectors.tolist()}),
    ]


@pytest.fixture
def root(s3_bucket: str, tmp_path: Path) -> str:
    """Images and a model in a bucket."""
    root = f"s3://{s3_bucket}"
    fill(Store(f"{root}/images"))
    labelled = make_labelled(tmp_path / "labelled", each=8)
    settings = with_overrides(Settings(), FAST)
    for store in (Store(f"{root}/steady"), Store(f"{root}/unsteady")):
        run = start_run(
            store, kind="train", archive="a", images=str(labelled), model="m", settings=settings, run_id="t"
        )
        list(run_pipeline(run))
    return root


def test_a_twentieth_of_the_answers_is_spoilt(root: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    steady = work(start(Store(f"{root}/steady"), root, "once"))
    with FaultyProxy(s3_server.endpoint_url, share=0.05) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        unsteady = work(start(Store(f"{root}/unsteady"), root, "once"))
        assert any("/images/" in path for path in proxy.read)
        proxy.read.clear()
        again = work(start(Store(f"{root}/unsteady"), root, "again"))
    assert proxy.read and not any("/images/" in path for path in proxy.read), "listed, and not read"
    assert min(proxy.counts[fate] for fate in ("503", "no answer", "half an answer")) > 0, proxy.counts
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint_url)
    wanted = tables(Run.load(steady.uri))
    assert wanted[0].num_rows == IMAGES and wanted[3].num_rows == IMAGES
    assert tables(Run.load(unsteady.uri)) == wanted and tables(Run.load(again.uri)) == wanted
    assert again.artifact("embed").counts["in"] == 0 and again.artifact("catalog").facts["files_read"] == 0
    assert unsteady.artifact("catalog").facts["ledger"]["quarantined"] == 0, "a network fault is no picture's fault"


def test_an_object_that_the_bucket_refuses_is_a_row_and_is_asked_for_again(
    s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was moved to an archive, or lies under a key of its own; of all others nothing is wrong."""
    root, refused = f"s3://{s3_bucket}", "a1/00001.png"
    fill(Store(f"{root}/images"))
    with FaultyProxy(s3_server.endpoint_url, share=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        proxy.refused = refused
        settings = with_overrides(Settings(), [*FAST, "catalog.labels=none"])
        found = []
        for run_id in ("refused", "restored"):
            run = start_run(
                Store(f"{root}/store"),
                kind="run",
                archive="a",
                images=f"{root}/images",
                model="m",
                settings=settings,
                run_id=run_id,
            )
            run_stage(run, "catalog")
            rows = run.read_table("catalog", "observations.parquet").to_pylist()
            found.append({row["file"]: row["reason"] for row in rows if row["reason"] is not None})
            proxy.refused = ""
    assert found == [{refused: "unreadable"}, {}]


def test_the_server_is_away_for_twenty_seconds_in_the_middle(root: str, s3_server: S3Server) -> None:
    steady = work(start(Store(f"{root}/steady"), root, "once"))
    run = start(Store(f"{root}/unsteady"), root, "once")
    run_stage(run, "catalog")
    begun = threading.Event()

    def noticed(run: Run, parts: object) -> object:
        from damage_atlas.embed import embed_in_threads

        for result in embed_in_threads(run, parts):  # type: ignore[arg-type]
            begun.set()
            yield result

    failures: list[BaseException] = []

    def embed() -> None:
        try:
            embed_archive(run, noticed)  # type: ignore[arg-type]
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=embed)
    thread.start()
    assert begun.wait(60)
    s3_server.stop()  # from the main thread, which has started it
    time.sleep(20)
    s3_server.start()
    thread.join(300)
    assert not failures, failures
    run_stage(run, "index")
    assert tables(run) == tables(steady)

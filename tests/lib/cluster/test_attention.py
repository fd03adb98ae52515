"""A run tells what to look at: alerts.json with its evidence, and the queue of noise; a quiet run tells nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from damage_atlas.contracts import Alerts
from damage_atlas.pipeline import run_pipeline, run_stage
from damage_atlas.spec import Settings, with_overrides
from damage_atlas.store import Run, Store, start_run
from tests.support.small_archive import make_labelled, picture

FAST = ["train.input_size=32", "train.iterations=60", "train.batch_size=24", "train.learning_rate=0.002"]


def deliver(folder: Path, name: str, first: int, **each: int) -> None:
    for kind, n in each.items():
        for k in range(first, first + n):
            file = folder / name / f"asset-{k % 2}" / f"{kind}-{k:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(kind, 1000 + k)).save(file)


def clustered(store: Store, images: Path, delivery: str, publish: bool = False) -> Run:
    run = start_run(
        store, kind="recluster", archive="bridge", model="small", images=str(images), delivery=delivery,
        settings=with_overrides(Settings(), ["catalog.labels=none", "catalog.deliveries=folder"]),
    )  # fmt: skip
    for stage in run.spec.stages if publish else run.spec.stages[: run.spec.stages.index("cluster") + 1]:
        run_stage(run, stage)
    return run


def alerts_of(run: Run) -> Alerts:
    return Alerts.model_validate_json(run.read("cluster", "alerts.json"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path, Run]:
    """A model that knows three kinds, and a first version that holds two of them."""
    store, images = Store(tmp_path_factory.mktemp("store")), tmp_path_factory.mktemp("images") / "archive"
    labelled = make_labelled(tmp_path_factory.mktemp("labelled") / "labelled")
    settings = with_overrides(Settings(), FAST)
    list(run_pipeline(start_run(
        store, kind="train", archive="small", model="small", images=str(labelled), settings=settings
    )))  # fmt: skip
    deliver(images, "d1", 0, across=60, down=60)
    return store, images, clustered(store, images, "d1", publish=True)


def test_a_first_version_has_nothing_to_compare_with(archive: tuple[Store, Path, Run]) -> None:
    found = alerts_of(archive[2])
    assert found.alerts == [] and found.compared_with is None and "first version" in (found.not_compared or "")


def test_twelve_of_a_new_kind_raise_one_hand_with_its_evidence(archive: tuple[Store, Path, Run]) -> None:
    store, images, _ = archive
    deliver(images, "d2-new", 100, across=10, down=10, dots=12)
    run = clustered(store, images, "d2-new")
    found = alerts_of(run)
    assert run.artifact("cluster").facts["alerts"] == len(found.alerts) == 1
    (alert,) = found.alerts
    assert alert.kind in ("born", "group") and (found.new_images, found.old_images) == (32, 120)
    uris = dict(
        zip(*(run.read_table("cluster", "points.parquet")[c].to_pylist() for c in ("image_id", "uri")), strict=True)
    )
    assert sorted("/dots-" in uris[i] for i in alert.image_ids).count(False) <= 1
    assert len(alert.image_ids) == alert.images >= 11 and alert.score > 3 and alert.expected < 6
    assert "/dots-" in alert.medoid.uri and len(alert.nearest) == 9
    assert alert.nearest[0].similarity >= alert.nearest[-1].similarity
    assert set(alert.assets) == {"asset-0", "asset-1"} and sum(alert.assets.values()) == alert.images
    assert {"asset_id": "asset-0"} in alert.places and "asset-0" in alert.text and "new" in alert.text
    if alert.kind == "born":
        assert str(alert.cluster_id) in alert.clusters and alert.size_before == 0


def test_more_of_the_same_raises_none(archive: tuple[Store, Path, Run]) -> None:
    store, images, _ = archive
    deliver(images, "d1-more", 200, across=8, down=8)  # listed before d2-new
    run = clustered(store, images, "d1-more")
    found = alerts_of(run)
    assert found.alerts == [] and found.new_images == 16 and found.not_compared is None


def test_the_queue_holds_all_noise(archive: tuple[Store, Path, Run]) -> None:
    run = archive[2]
    queue = run.read_table("cluster", "noise.parquet").to_pylist()
    points = run.read_table("cluster", "points.parquet").to_pylist()
    assert [row["rank"] for row in queue] == list(range(1, len(queue) + 1))
    assert {row["image_id"] for row in points if row["cluster_id"] is None} <= {row["image_id"] for row in queue}
    assert 12 <= len(queue) < 60, "and the loneliest images, whatever cluster the map has drawn them into"

"""Every stage in one process on a small archive: what comes out, what a second run does, what an interruption does."""

from __future__ import annotations

from pathlib import Path

import pytest

from damage_atlas.contracts import TABLES
from damage_atlas.errors import ContractError, InputError, PublishConflictError
from damage_atlas.neighbours import read_vectors
from damage_atlas.pipeline import run_pipeline, run_stage, summarize
from damage_atlas.publish import publish_run, rollback, verify_run
from damage_atlas.query import cluster_history, diff, failed, history, published_run, search
from damage_atlas.spec import Settings, with_overrides
from damage_atlas.store import Run, Store, current_version, start_run
from tests.support.small_archive import make_delivery, make_labelled

FAST = ["train.input_size=32", "train.iterations=40", "train.batch_size=24", "train.learning_rate=0.002"]


def run_all(store: Store, images: Path, *overrides: str, **arguments: object) -> Run:
    settings = with_overrides(Settings(), [*FAST, *overrides])
    chosen = {"kind": "run", "archive": "small", "model": "small", "images": str(images), "settings": settings}
    run = start_run(store, **(chosen | arguments))  # type: ignore[arg-type]
    list(run_pipeline(run))
    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_labelled(tmp_path_factory.mktemp("images") / "labelled")
    (folder / "down" / "broken.png").write_bytes((folder / "down" / "000.png").read_bytes()[:900])
    (folder / "down" / "again.png").write_bytes((folder / "down" / "001.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def run(store: Store, images: Path) -> Run:
    return run_all(store, images, run_id="first")


def test_counts_add_up_and_nothing_is_lost(run: Run) -> None:
    summary = summarize(run)
    assert summary["counts"] == {
        "listed": 74, "embedded": 72, "reused": 0, "duplicate": 1, "quarantined": 1, "pending": 0,
    }  # fmt: skip
    assert summary["quarantine"] == {"truncated": 1}
    assert [row["file"] for row in failed(run)] == ["down/broken.png"]


def test_it_learns_and_finds_the_classes(run: Run) -> None:
    summary = summarize(run)
    assert summary["scores"]["knn_accuracy"] > 0.9
    assert summary["clusters"] >= 3 and summary["version"] == 1


def test_all_tables_are_there_with_the_contracts_columns(run: Run) -> None:
    later = {"cluster/neighbours.parquet", "catalog/changes.parquet"}  # of large archives, and of second versions
    for place, schema in TABLES.items():
        if place in later:
            continue
        stage, name = place.split("/")
        assert run.read_table(stage, name).schema.equals(schema), place


def test_everything_verifies(run: Run) -> None:
    assert verify_run(run) == []


def test_running_any_stage_again_changes_nothing(run: Run) -> None:
    before = {item.key: run.store.digest(item.key) for item in run.store.list()}
    for stage in run.spec.stages:
        run_stage(run, stage)
    assert {item.key: run.store.digest(item.key) for item in run.store.list()} == before


def test_an_image_finds_itself(run: Run, images: Path) -> None:
    rows = search(run.store, "small", images / "dots" / "003.png", k=5)
    assert len(rows) == 5 and rows[0]["similarity"] > 0.999 and rows[0]["uri"].endswith("dots/003.png")
    assert search(run.store, "small", rows[0]["image_id"], k=1)[0]["image_id"] == rows[0]["image_id"]


@pytest.mark.parametrize(("image", "k"), [("no/such/file.jpg", 3), (__file__, 3), ("x", 0)])
def test_questions_that_cannot_be_answered(run: Run, image: str, k: int) -> None:
    with pytest.raises((InputError, Exception)) as caught:
        search(run.store, "small", image, k)
    assert getattr(caught.value, "message", "")


def test_deliveries_reuse_vectors_and_keep_ids(run: Run, store: Store, tmp_path: Path) -> None:
    folder = make_delivery(tmp_path / "archive", "d1", 0, each=14)
    make_delivery(tmp_path / "archive", "d2", 50, each=4)
    settings = ["catalog.labels=none", "catalog.deliveries=folder"]
    one = run_all(store, folder, *settings, kind="recluster", archive="bridge", delivery="d1", run_id="d1")
    two = run_all(store, folder, *settings, kind="recluster", archive="bridge", delivery="d2", run_id="d2")
    assert summarize(one)["counts"]["embedded"] == 42
    counts = summarize(two)["counts"]
    assert (counts["listed"], counts["embedded"], counts["reused"]) == (54, 12, 42)
    kept = diff(store, "bridge", 1, 2)
    assert kept["images_added"] == 12 and kept["images_gone"] == 0
    assert kept["kept_cluster_share"] > 0.9
    assert [row["version"] for row in history(store, "bridge")] == [1, 2]
    past = cluster_history(store, "bridge", 1)["events"]
    assert [row["version"] for row in past if row["to_cluster_id"] == 1] == [1, 2] and past[0]["event"] == "born"
    with pytest.raises(InputError, match="has had no cluster 999"):
        cluster_history(store, "bridge", 999)
    record = rollback(published_run(store, "bridge", 1))
    assert (record.version, record.run_id) == (3, "d1") and current_version(store, "bridge") == 3
    assert record.next_cluster_id == two.artifact("cluster").facts["next_cluster_id"], "ids are never given twice"


def test_an_index_that_grew_is_read_in_its_own_order(run: Run, store: Store, tmp_path: Path) -> None:
    folder = make_delivery(tmp_path / "archive", "d1", 0, each=14)
    settings = ["catalog.labels=none", "catalog.deliveries=folder"]
    run_all(store, folder, *settings, kind="recluster", archive="grown", run_id="one")
    make_delivery(tmp_path / "archive", "d2", 50, each=2)
    two = run_all(store, folder, *settings, kind="recluster", archive="grown", run_id="two")
    facts = two.artifact("index").facts
    assert (facts["rebuilt"], facts["kept"], facts["added"]) == (False, 42, 6)
    order = two.read_table("index", "ids.parquet")["image_id"].to_pylist()
    assert order != sorted(order)

    ids, vectors = read_vectors(two)
    vector_of = dict(zip(ids, vectors, strict=True))
    explained = two.read_table("explain", "explanations.parquet").to_pylist()
    for row in explained:
        sample = next(r["image_id"] for r in explained if (r["cluster_id"], r["rank"]) == (row["cluster_id"], 0))
        cosine = float(vector_of[sample] @ vector_of[row["image_id"]])
        assert row["similarity"] == pytest.approx(min(cosine, 1.0), abs=1e-5)
    for image_id in order[-6:]:
        assert search(store, "grown", image_id, k=1)[0]["image_id"] == image_id


def test_of_two_runs_on_the_same_version_one_publishes(store: Store, images: Path) -> None:
    first = run_all_but_publish(store, images, "race-1")
    second = run_all_but_publish(store, images, "race-2")
    assert publish_run(second).facts["version"] == 1
    with pytest.raises(PublishConflictError, match="published by run race-2"):
        publish_run(first)
    assert first.stage("publish").sealed is None


def run_all_but_publish(store: Store, images: Path, run_id: str) -> Run:
    settings = with_overrides(Settings(), [*FAST, "train.iterations=2"])
    run = start_run(
        store, kind="run", archive="race", model=run_id, images=str(images), settings=settings, run_id=run_id
    )
    for stage in run.spec.stages[:-1]:
        run_stage(run, stage)
    return run


def test_an_interrupted_run_goes_on_to_the_same_tables(run: Run, images: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    other = start_run(
        Store(tmp_path),
        kind="run",
        archive="small",
        model="small",
        images=str(images),
        settings=with_overrides(Settings(), [*FAST, "train.checkpoint_every=10"]),
        run_id="first",
    )
    run_stage(other, "catalog")
    from damage_atlas.train import train_model

    def stop_at_25(state: object) -> None:
        if state.iteration == 25:  # type: ignore[attr-defined]
            raise Stopped

    with pytest.raises(Stopped):
        train_model(other, on_iteration=stop_at_25)
    with pytest.raises(ContractError):
        other.artifact("train")
    list(run_pipeline(other))
    weights = [r.artifact("train").outputs["model.safetensors"].sha256 for r in (run, other)]
    assert weights[0] == weights[1], "from the checkpoint at 20, bit for bit"
    for table in ("points.parquet", "clusters.parquet"):
        assert run.read_table("cluster", table).equals(other.read_table("cluster", table))


def test_a_damaged_store_is_not_published(store: Store, images: Path) -> None:
    run = run_all_but_publish(store, images, "damaged")
    path = run.store.folder / run.artifact("cluster").outputs["points.parquet"].key  # type: ignore[operator]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ContractError, match=r"points\.parquet was changed"):
        publish_run(run)


def test_images_that_vanish_between_catalog_and_embed_are_quarantined(store: Store, tmp_path: Path) -> None:
    folder = make_delivery(tmp_path / "archive", "d1", 0, each=6)
    settings = with_overrides(Settings(), [*FAST, "catalog.labels=none", "catalog.deliveries=folder"])
    opened = start_run(
        store, kind="recluster", archive="gone", model="small", images=str(folder), settings=settings, run_id="g"
    )
    run_stage(opened, "catalog")
    sorted((folder / "d1" / "asset-0").iterdir())[0].unlink()
    list(run_pipeline(opened))
    counts = summarize(opened)
    assert counts["counts"]["quarantined"] == 1 and counts["quarantine"] == {"vanished": 1}
    assert counts["counts"]["embedded"] == 17


@pytest.mark.parametrize("each", [1, 2, 9])
def test_archives_of_a_few_images(store: Store, tmp_path: Path, run: Run, each: int) -> None:
    folder = make_delivery(tmp_path / "archive", "d", 0, each=each)
    settings = ["catalog.labels=none"]
    done = run_all(store, folder, *settings, kind="recluster", archive=f"few-{each}", run_id="r")
    assert summarize(done)["counts"]["embedded"] == 3 * each


def test_one_image_and_all_identical(store: Store, tmp_path: Path, run: Run) -> None:
    folder = make_delivery(tmp_path / "one", "d", 0, each=1)
    files = sorted(p for p in folder.rglob("*.png"))
    for other in files[1:]:
        other.write_bytes(files[0].read_bytes())
    done = run_all(store, folder, "catalog.labels=none", kind="recluster", archive="same", run_id="r")
    counts = summarize(done)["counts"]
    # The same bytes of one asset at one time are one observation and duplicates.
    assert counts["listed"] == 3 and counts["embedded"] == 1
    assert counts["duplicate"] + counts["reused"] == 2

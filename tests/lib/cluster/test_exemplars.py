"""Exemplars find a cluster again without one shared image, after a promotion too; what is nowhere near is not it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from damage_atlas.cluster.exemplars import PER_CLUSTER, exemplar_table, place_exemplars
from damage_atlas.cluster.passports import NOISE, NOWHERE
from damage_atlas.pipeline import run_pipeline
from damage_atlas.spec import Settings, with_overrides
from damage_atlas.store import Run, Store, start_run
from tests.support.small_archive import CLASSES, make_delivery, make_labelled


def around(group: int, n: int, seed: int, spread: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng([seed, group])
    vectors = np.eye(16)[group] + rng.normal(0, spread, (n, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_exemplars_fall_into_the_cluster_that_lies_where_theirs_lay() -> None:
    vectors = np.concatenate([around(0, 40, 1), around(1, 60, 1), around(2, 12, 1)])
    labels = np.repeat([1, 0, NOISE], [40, 60, 12])
    asked = np.concatenate([around(0, 20, 2), around(1, 20, 2), around(2, 20, 2), around(9, 20, 2)])
    fallen = place_exemplars(asked, vectors, labels).reshape(4, 20)
    for row, wanted in zip(fallen, (1, 0, NOISE, NOWHERE), strict=True):
        assert (row == wanted).mean() >= 0.9


@pytest.mark.parametrize(("exemplars", "images"), [(0, 20), (3, 0), (3, 1), (3, 9)])
def test_few_images_or_none(exemplars: int, images: int) -> None:
    fallen = place_exemplars(around(0, exemplars, 1), around(0, images, 2), np.zeros(images, np.int64))
    assert len(fallen) == exemplars and set(fallen.tolist()) <= {0, NOWHERE}
    assert images or (fallen == NOWHERE).all()


def test_identical_images_are_near_enough() -> None:
    vectors = np.repeat(around(0, 1, 1), 30, axis=0)
    assert (place_exemplars(vectors[:5], vectors, np.zeros(30, np.int64)) == 0).all()


def test_the_draw_is_fair_and_the_same_in_any_order() -> None:
    vectors = around(0, 500, 1)
    ids = [f"i{k:03d}" for k in range(500)]
    clusters = [None if k % 5 == 0 else 1 + (k % 2) for k in range(500)]
    table = exemplar_table("m@1", ids, vectors, clusters)
    order = np.random.default_rng(0).permutation(500)
    again = exemplar_table("m@1", [ids[i] for i in order], vectors[order], [clusters[i] for i in order])
    assert table.equals(again)
    assert table["cluster_id"].to_pylist() == [1] * PER_CLUSTER + [2] * PER_CLUSTER
    drawn = [int(image_id[1:]) for image_id in table["image_id"].to_pylist()]
    assert all(clusters[k] == c for k, c in zip(drawn, table["cluster_id"].to_pylist(), strict=True))
    assert 150 < np.mean(drawn) < 350


FAST = ["train.input_size=32", "train.iterations=60", "train.batch_size=24", "train.learning_rate=0.002"]
UNLABELLED = ["catalog.labels=none", "catalog.deliveries=folder"]


def finish(store: Store, **wanted: object) -> Run:
    run = start_run(store, **wanted)  # type: ignore[arg-type]
    list(run_pipeline(run))
    return run


def ids_of_kinds(run: Run) -> dict[str, set[int]]:
    """Clusters in which each kind of picture lies, noise left out."""
    points = run.read_table("cluster", "points.parquet").to_pylist()
    found: dict[str, list[int]] = {kind: [] for kind in CLASSES}
    for row in points:
        if row["cluster_id"] is not None:
            found[next(kind for kind in CLASSES if f"/{kind}-" in row["uri"])].append(row["cluster_id"])
    return {kind: {c for c in set(ids) if ids.count(c) > len(ids) / 3} for kind, ids in found.items()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = make_labelled(tmp_path_factory.mktemp("images") / "labelled")
    store = Store(tmp_path_factory.mktemp("store"))
    for seed in (0, 1):
        settings = with_overrides(Settings(), [*FAST, f"train.seed={seed}"])
        finish(
            store, kind="train", archive="small", model="small", images=str(folder), settings=settings,
            run_id=f"model-{seed}",
        )  # fmt: skip
    return store


@pytest.mark.parametrize("case", ["same model", "promoted", "promoted, files gone"])
def test_a_window_without_a_shared_image_keeps_ids(store: Store, tmp_path: Path, case: str) -> None:
    archive = case.replace(", ", "-").replace(" ", "-")
    # Three clusters whatever the processor: how many DBSCAN finds in ninety pictures is not what is asked here.
    settings = with_overrides(Settings(), [*UNLABELLED, "cluster.method=kmeans", "cluster.kmeans_clusters=3"])
    wanted = {"kind": "recluster", "archive": archive, "settings": settings}
    one, two = (make_delivery(tmp_path / n, "d", first, each=30).as_posix() for n, first in (("one", 0), ("two", 100)))
    first = finish(store, **wanted, images=one, model="small@model-0", run_id="first")
    if case == "promoted, files gone":
        shutil.rmtree(one)  # pictures of the picture rows are all that is left
    model = "small@model-0" if case == "same model" else "small@model-1"
    second = finish(store, **wanted, images=two, model=model, run_id="second")
    before, after = ids_of_kinds(first), ids_of_kinds(second)
    assert all(len(ids) == 1 for ids in before.values()) and before == after
    lineage = second.read_table("cluster", "lineage.parquet").to_pylist()
    assert {row["event"] for row in lineage} <= {"kept", "grown", "shrunk"}
    assert {row["evidence"] for row in lineage} == {"exemplars"} and all(r["shared_images"] == 0 for r in lineage)
    ledger = second.read_table("cluster", "ledger.parquet").to_pylist()
    assert [row["version"] for row in ledger if row["to_cluster_id"] == 1] == [1, 2]

"""Experiments: runs that begin with the cluster stage are real runs, and the tables count what happened."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from damage_atlas.contracts import REFERENCE, ModelCard, Tombstone
from damage_atlas.experiments.alerts import summary
from damage_atlas.experiments.deliveries import _movement, kept, lineage, places
from damage_atlas.experiments.staged import StagedArchive
from damage_atlas.spec import ClusterSpec, Settings
from damage_atlas.store import Run, Store
from damage_atlas.store.forgotten import bury
from damage_atlas.store.runs import table_bytes, write_output


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def archive(folder: Path) -> StagedArchive:
    store = Store(folder)
    rows = [{"image_id": f"t{k}", "label": "crack", "split": "train", "vector": np.eye(16)[k]} for k in range(3)]
    reference = write_output(store, "models/m/1/reference.parquet", table_bytes(pa.Table.from_pylist(rows, REFERENCE)))
    card = ModelCard(
        model="m", version="1", network={}, preprocessing={"size": 32}, classes=["crack"], parameters=1,
        weights=reference, reference=reference, train_spec={}, data_sha256="0" * 64, images={}, scores={},
        code_version="0", created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    store.create("models/m/1/model.json", card.model_dump_json().encode())
    return StagedArchive(store, "made", card)


def test_versions_follow_each_other_and_keep_their_ids(tmp_path: Path) -> None:
    staged, settings = archive(tmp_path), Settings(cluster=ClusterSpec(map_iterations=300, threads=1))
    draw = np.random.default_rng(0)
    kinds = np.arange(130) % 3
    vectors = unit(np.eye(16)[kinds] + draw.normal(0, 0.08, (130, 16)))
    ids = [f"i{k:03d}" for k in draw.permutation(130)]  # the order of rows is not that of names
    first = staged.cluster("one", ids[:120], vectors[:120], settings)
    assert staged.publish(first) == 1
    second = staged.cluster("two", ids, vectors, settings)
    assert second.spec.previous_version == 1
    before, now = places(first), places(second)
    assert len(before) == 120 and len(now) == 130
    clustered, everything = kept(before, now)
    assert clustered > 0.95 and everything > 0.9
    kind_of = dict(zip(ids, kinds.tolist(), strict=True))
    of_cluster = {(cluster, kind_of[i]) for i, cluster in now.items() if cluster is not None}
    assert len({cluster for cluster, _ in of_cluster}) == len(of_cluster), "each cluster holds one kind"
    # On a kept map with the same clusters one of six resamples is new.
    seen = [run.read_table("cluster", "clusters.parquet")["reappears"].to_pylist() for run in (first, second)]
    assert second.artifact("cluster").facts["map"] == "placed" and len(seen[0]) == len(seen[1])
    assert all(share * 6 == pytest.approx(round(share * 6)) for share in seen[0])
    counted = [now * 6 - before * 5 for before, now in zip(*seen, strict=True)]
    assert counted == pytest.approx([round(share) for share in counted])
    assert second.artifact("cluster").facts["resamples_made"] == 1
    assert "kept" in lineage(second) and 0 <= _movement(first, second) < 0.5
    again = staged.cluster("two", ids, vectors, settings)
    assert again.artifact("cluster") == second.artifact("cluster"), "what is there is taken"


def test_a_kind_that_comes_again_after_versions_without_it_has_its_id_back(tmp_path: Path) -> None:
    """A rolling window: moss every other season, no image twice. What was forgotten does not bring it back."""
    staged, settings = archive(tmp_path), Settings(cluster=ClusterSpec(map_iterations=300, threads=1))
    draw = np.random.default_rng(0)

    def delivery(name: str, *kinds: int) -> Run:
        of = np.repeat(kinds, 60)
        vectors = unit(np.eye(16)[of] + draw.normal(0, 0.05, (len(of), 16)))
        run = staged.cluster(name, [f"{name}{k:03d}" for k in range(len(of))], vectors, settings)
        staged.publish(run)
        return run

    def of_kind(run: Run, position: int) -> int | None:
        own = [c for i, c in places(run).items() if position * 60 <= int(i[1:]) < (position + 1) * 60]
        return Counter(own).most_common(1)[0][0]

    moss = of_kind(delivery("a", 0, 1, 2), 2)
    assert moss is not None and of_kind(delivery("b", 0, 1), 1) != moss
    delivery("c", 0, 1)
    back = delivery("d", 0, 1, 2)
    assert of_kind(back, 2) == moss
    events = back.read_table("cluster", "lineage.parquet").to_pylist()
    assert [(e["from_cluster_id"], e["evidence"]) for e in events if e["event"] == "returned"] == [(moss, "exemplars")]
    first = {r["cluster_id"]: r["first_version"] for r in back.read_table("cluster", "clusters.parquet").to_pylist()}
    assert first[moss] == 1
    kept = delivery("e", 0, 1).read_table("cluster", "exemplars.parquet").to_pylist()
    # All but four of those that were kept of it: too few to tell by.
    images = [row["image_id"] for row in kept if row["cluster_id"] == moss][4:]
    assert len(images) > 20
    bury(staged.store, "made", Tombstone(asked_for="moss", sha256=[], image_ids=images, files=[]))
    assert of_kind(delivery("f", 0, 1, 2), 2) not in (moss, None)


def test_kept_counts_pairs() -> None:
    before = {"a": 1, "b": 1, "c": 2, "d": None, "gone": 1}
    now = {"a": 1, "b": 3, "c": None, "d": None, "new": 1}
    assert kept(before, now) == (0.5, 0.5)


def test_the_table_of_alerts_counts_alerts_about_the_group() -> None:
    rows = [
        {"class": "patches", "size": 0, "alerts": []},
        {"class": "patches", "size": 0, "alerts": [["group", 5, 0]]},
        {"class": "patches", "size": 12, "alerts": [["born", 13, 12]]},
        {"class": "patches", "size": 12, "alerts": [["group", 6, 1]]},  # of others, for the most part
        {"class": "crazing", "size": 12, "alerts": []},
    ]
    lines = {line.split(" | ")[0].strip("| "): line for line in summary(rows).splitlines()}
    assert lines["patches"] == "| patches | 1 of 2 | – | – | 1 of 2 | – |"
    assert lines["all"] == "| all | 1 of 2 | – | – | 1 of 3 | – |"

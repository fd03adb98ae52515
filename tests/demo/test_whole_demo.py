"""`damage-atlas demo` as a person types it, and what it finds against the truth that no stage reads. Some minutes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from damage_atlas.demo.truth import read_truth, score_against_truth
from damage_atlas.errors import InputError
from damage_atlas.experiments.many import many
from damage_atlas.publish import verify_run
from damage_atlas.query import diff, failed, published_run, search
from damage_atlas.spec import ClusterSpec
from damage_atlas.store import Run, Store

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def summaries(out: Path) -> list[dict[str, Any]]:
    command = [str(Path(sys.executable).parent / "damage-atlas"), "demo", "--out", str(out), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    printed: list[dict[str, Any]] = json.loads(result.stdout)
    return printed


@pytest.fixture(scope="module")
def run(out: Path, summaries: list[dict[str, Any]]) -> Run:
    return published_run(Store(out / "store"), "demo")


def test_three_versions_and_every_image_accounted_for(summaries: list[dict[str, Any]]) -> None:
    assert [summary["version"] for summary in summaries] == [1, 2, 3]
    for summary in summaries:
        counts = summary["counts"]
        assert counts["listed"] == sum(n for name, n in counts.items() if name != "listed")
        assert counts["pending"] == 0


def test_clusters_are_finer_than_the_classes(summaries: list[dict[str, Any]]) -> None:
    truth = summaries[-1]["truth"]
    assert truth["ari_modes"] >= truth["ari_classes"] + 0.15, truth


def test_true_modes_are_in_confident_clusters(summaries: list[dict[str, Any]]) -> None:
    truth = summaries[-1]["truth"]
    assert truth["modes"] >= 16 and truth["confident_modes"] >= 0.8 * truth["modes"], truth


def test_the_planted_kind_is_reported_as_new(run: Run, summaries: list[dict[str, Any]]) -> None:
    truth = summaries[-1]["truth"]
    assert truth["new_clusters"] and truth["in_new_clusters"] >= truth["planted"] / 2, truth
    text = run.read("report", "index.html").decode()
    assert f"cluster {truth['new_clusters'][0]} is new" in text or "clusters are new" in text


def test_a_fine_crack_in_a_large_photo_is_in_a_crack_cluster(summaries: list[dict[str, Any]]) -> None:
    truth = summaries[-1]["truth"]
    assert truth["crack_tiles"] >= 3 and truth["in_crack_clusters"] >= 0.8 * truth["crack_tiles"], truth


def test_planted_trouble_has_the_status_and_reason_that_the_truth_says(out: Path, run: Run) -> None:
    assert score_against_truth(out, "demo")["wrong_status"] == []
    truth = read_truth(out)
    expected = Counter(row["reason"] for row in truth.values() if row["status"] == "quarantined")
    assert Counter(row["reason"] for row in failed(run)) == expected
    duplicates = sum(row["status"] == "duplicate" for row in truth.values())
    assert run.artifact("embed").facts["ledger"]["duplicate"] == duplicates


def test_colour_and_thumbnails_score_at_most_half_as_much(out: Path, summaries: list[dict[str, Any]]) -> None:
    with (out / "truth.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            r for r in csv.DictReader(file) if r["file"].startswith("archive/") and r["planted"] in ("", "new_kind")
        ]
    modes = [row["mode"] for row in rows]
    thumbnails, histograms = [], []
    for row in rows:
        with Image.open(out / "images" / row["file"]) as picture:
            thumbnails.append(np.asarray(picture.convert("RGB").resize((8, 8)), np.float64).ravel())
            histograms.append(np.sqrt(np.array(picture.convert("RGB").histogram()) / 65536))
    for points in (np.stack(thumbnails), np.stack(histograms)):
        found = KMeans(len(set(modes)), n_init=3, random_state=0).fit_predict(points)
        assert adjusted_rand_score(modes, found) <= summaries[-1]["truth"]["ari_modes"] / 2


def test_a_published_version_can_be_asked(out: Path, run: Run) -> None:
    store = Store(out / "store")
    assert verify_run(run) == []
    assert diff(store, "demo", 2, 3)
    image = next((out / "images" / "archive").rglob("DJI_0*.jpg"))
    assert search(store, "demo", image, k=3)[0]["similarity"] > 0.999


def test_planted_images_among_many_others(out: Path, summaries: list[dict[str, Any]], tmp_path: Path) -> None:
    spec = ClusterSpec(map_iterations=300, resamples=0)
    lines = list(many(out, tmp_path, count=300, spec=spec))
    assert [("fitted" in line, "placed" in line) for line in lines] == [(True, False), *[(False, True)] * 3]
    assert [line.split(":")[0] for line in lines[1:]] == [f"100 others and {n} planted" for n in (0, 12, 5)]
    assert not lines[3].endswith(" 0 within 50"), "of five that are like nothing else somebody sees one"
    with pytest.raises(InputError, match="pictures"):
        next(many(out, tmp_path, count=5000, spec=spec))
    (tmp_path / "truth.csv").unlink()
    with pytest.raises(InputError, match="not all drawn"):
        next(many(out, tmp_path, count=300, spec=spec))

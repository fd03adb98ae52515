"""Baselines: trained on the same images, tuned without the held-out ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from damage_atlas.experiments.baselines import (
    FROZEN,
    METHODS,
    compare_baselines,
    methods_for,
    texture_and_colour,
    vectors_of,
)
from damage_atlas.experiments.data import open_images, with_validation
from damage_atlas.experiments.plots import draw_scores
from damage_atlas.experiments.subclasses import summarise
from damage_atlas.images import Source
from damage_atlas.network import to_input
from damage_atlas.spec import Settings, with_overrides
from damage_atlas.train.data import LabelledImages
from damage_atlas.train.evaluate import held_out_scores
from tests.support.backbone import SmallBackbone
from tests.support.small_archive import make_labelled

SETTINGS = with_overrides(
    Settings(),
    ["train.input_size=32", "train.iterations=40", "train.batch_size=24", "train.learning_rate=0.002",
     "train.precision=float32", "train.erasing_probability=0"],
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("images") / "labelled")


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_the_stripes(method: str, folder: Path, tmp_path: Path) -> None:
    with open_images(str(folder), tmp_path, SETTINGS) as (images, pixels):
        vectors = vectors_of(method, images, pixels, SETTINGS.train)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
        assert held_out_scores(images, vectors)["knn_accuracy"] > 0.9


def test_a_loss_with_weights_of_its_own_is_drawn_by_the_seed(folder: Path, tmp_path: Path) -> None:
    spec = SETTINGS.train.model_copy(update={"iterations": 2})
    with open_images(str(folder), tmp_path, SETTINGS) as (images, pixels):
        first, again, other = (
            vectors_of("cross-entropy", images, pixels, spec.model_copy(update={"seed": seed})) for seed in (0, 0, 1)
        )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_baseline_follows_the_schedule_that_ours_has(folder: Path, tmp_path: Path) -> None:
    spec = SETTINGS.train.model_copy(update={"iterations": 2})
    with open_images(str(folder), tmp_path, SETTINGS) as (images, pixels):
        constant, cosine = (
            vectors_of("SupCon", images, pixels, spec.model_copy(update={"schedule": schedule}))
            for schedule in ("constant", "cosine")
        )
    assert not np.array_equal(constant, cosine)


def test_a_rate_at_which_training_diverges_ends_no_comparison(folder: Path, tmp_path: Path) -> None:
    settings = with_overrides(SETTINGS, ["train.iterations=30"])
    with open_images(str(folder), tmp_path, settings) as (images, pixels):
        rows = {
            method: compare_baselines(images, pixels, settings.train, [method], [0], rates, tmp_path / "rows.jsonl")
            for method, rates in (("mn_pair", (1e30, 2e-3)), ("SupCon", (1e30, 2e-3)), ("NT-Xent", (1e30,)))
        }
    assert rows["mn_pair"][0]["learning_rate"] == rows["SupCon"][0]["learning_rate"] == 2e-3
    logged = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sum("refused" in row for row in logged if row["tuning"]) == 2
    (summary,) = summarise(rows["NT-Xent"], ["NT-Xent"], ["knn_accuracy"], "method")
    assert summary == {"method": "NT-Xent", "runs": "1, of which 1 diverged"}
    assert draw_scores(rows["NT-Xent"], "method", [])[1:4] == b"PNG"
    assert "diverged" in rows["NT-Xent"][0]["refused"] and "knn_accuracy" not in rows["NT-Xent"][0]


def test_tuning_sees_no_held_out_image(folder: Path, tmp_path: Path) -> None:
    with open_images(str(folder), tmp_path, SETTINGS) as (images, _):
        inner = with_validation(images, seed=0)
        assert set(inner.training_rows) | set(inner.rows_of("test")) == set(images.training_rows)
        assert not set(inner.training_rows) & set(inner.rows_of("test"))
        assert {inner.labels[row] for row in inner.rows_of("test")} == set(images.classes)


def test_no_photo_is_on_both_sides_when_settings_are_chosen() -> None:
    photos = [f"photo {i // 6}" for i in range(60)]
    labels, splits = [f"class {i // 30}" for i in range(60)], ["train" if i % 6 else "test" for i in range(60)]
    images = LabelledImages([f"{i:02d}" for i in range(60)], [Source("f")] * 60, labels, splits, photos)
    inner = with_validation(images, seed=0)
    chosen = {photos[row] for row in inner.rows_of("test")}
    assert chosen and not chosen & {photos[row] for row in inner.training_rows}
    assert all(splits[row] == "train" for row in [*inner.rows_of("test"), *inner.training_rows])


def test_the_better_rate_is_taken_and_nothing_is_measured_twice(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    spec = SETTINGS.train.model_copy(update={"iterations": 10})
    rates = [1e9, 0.002]  # a network whose weights are thrown about says nothing
    with open_images(str(folder), tmp_path, SETTINGS) as (images, pixels):
        asked = (images, pixels, spec, ["SupCon"], [0, 1], rates, file)
        rows = compare_baselines(*asked)
        assert [(row["seed"], row["learning_rate"]) for row in rows] == [(0, 0.002), (1, 0.002)]
        written = file.read_text()
        assert compare_baselines(*asked) == rows and file.read_text() == written


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="not known; mn_pair, cross-entropy"):
        vectors_of("magic", None, None, SETTINGS.train)  # type: ignore[arg-type]


def test_texture_is_what_plain_loops_count() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    grey = pixels.astype(np.float64).mean(axis=2)
    around = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
    wanted = [np.zeros(16) for _ in range(3)] + [np.zeros(256) for _ in range(3)]
    for y in range(12):
        for x in range(12):
            for channel in range(3):
                wanted[channel][pixels[y, x, channel] // 16] += 1
            for place, radius in enumerate((1, 2, 4)):
                near = [(y + dy * radius, x + dx * radius) for dy, dx in around]
                if all(0 <= v < 12 and 0 <= w < 12 for v, w in near):
                    wanted[3 + place][sum(2**i for i, (v, w) in enumerate(near) if grey[v, w] >= grey[y, x])] += 1
    assert np.allclose(texture_and_colour(pixels), np.concatenate([counts / counts.sum() for counts in wanted]))


def test_with_a_pretrained_backbone_what_it_knows_by_itself_is_compared_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen: no method moves it. The others fine-tune it."""
    monkeypatch.setenv("DAMAGE_ATLAS_MODULES", "tests.support.backbone")
    torch.manual_seed(3)
    backbone = SmallBackbone(width=8)
    save_file(backbone.state_dict(), tmp_path / "weights.safetensors")
    settings = with_overrides(
        SETTINGS,
        ["train.network=custom", "train.module=tests.support.backbone:SmallBackbone",
         "train.module_arguments={width: 8}", f"train.module_weights={tmp_path}/weights.safetensors",
         "train.pooling=average"],
    )  # fmt: skip
    assert FROZEN not in methods_for(SETTINGS.train) and FROZEN in methods_for(settings.train)
    with open_images(str(folder), tmp_path / "work", settings) as (images, pixels):
        frozen = vectors_of(FROZEN, images, pixels, settings.train)
        tuned = vectors_of("SupCon", images, pixels, settings.train)
        shown = to_input(pixels[np.arange(3)])
    assert frozen.shape == (len(images), 8) and tuned.shape == (len(images), settings.train.embedding_size)
    with torch.inference_mode():
        wanted = backbone.eval()(shown).mean(dim=(2, 3))
    assert np.allclose(frozen[:3], wanted / wanted.norm(dim=1, keepdim=True), atol=1e-5)
    assert held_out_scores(images, tuned)["knn_accuracy"] > held_out_scores(images, frozen)["knn_accuracy"]

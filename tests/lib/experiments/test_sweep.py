"""Sweeps: each training once, whoever measures it and however often they are asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from damage_atlas.errors import InputError, SpecError
from damage_atlas.experiments.data import catalogued, with_validation
from damage_atlas.experiments.plots import draw_axes
from damage_atlas.experiments.sweep import GRIDS, SCORES, as_text, in_words, parse_axes, plan_sweep, sweep, tabulate
from damage_atlas.spec import Settings, with_overrides
from damage_atlas.store import Run
from damage_atlas.train import labelled_images
from tests.support.small_archive import make_labelled

SETTINGS = with_overrides(
    Settings(),
    ["train.input_size=32", "train.iterations=10", "train.batch_size=24", "train.precision=float32"],
)
AXES = {"temperature": ("0.1", "0.3"), "embedding_size": ("8", "16")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    work = tmp_path_factory.mktemp("sweep")
    return catalogued(str(make_labelled(work / "labelled")), work, SETTINGS)


def test_what_axes_share_is_measured_once_and_nothing_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = plan_sweep(labelled_images(run), SETTINGS, AXES, range(2))
    assert len(trials) == 6, "temperature 0.3 and embedding size 16 are the same training"
    assert trials[0].places == (("temperature", "0.3"), ("embedding_size", "16"))
    rows = list(sweep(run, trials))
    asked: list[int] = []
    again = list(sweep(run, trials, lambda missing: asked.append(len(missing)) or []))  # type: ignore[func-returns-value]
    assert asked == [0] and sorted(r["key"] for r in again) == sorted(r["key"] for r in rows)
    for row in rows:
        assert next(r for r in again if r["key"] == row["key"]) == row
    table = tabulate(rows, AXES)
    assert [(r["axis"], r["value"], r["runs"]) for r in table] == [
        (axis, value, 2) for axis, values in AXES.items() for value in values
    ]
    assert table[1]["knn_accuracy"] == table[3]["knn_accuracy"] and "±" in as_text(table[0])["knn_accuracy"]
    assert draw_axes(rows, AXES, SCORES).startswith(b"\x89PNG")


def test_the_held_out_images_are_not_looked_at(run: Run) -> None:
    images = labelled_images(run)
    inner = with_validation(images, 0)
    assert not set(inner.rows_of("test")) & set(images.rows_of("test"))
    assert not set(inner.training_rows) & set(images.rows_of("test"))


def test_another_archive_or_setting_is_another_training(run: Run) -> None:
    images = labelled_images(run)
    keys = {plan_sweep(images, SETTINGS, {"seed": ("0",)}, [0])[0].key}
    longer = with_overrides(SETTINGS, ["train.iterations=11"])
    keys.add(plan_sweep(images, longer, {"temperature": ("0.3",)}, [0])[0].key)
    assert len(keys) == 2
    looked_at_more_often = with_overrides(SETTINGS, ["train.evaluate_every=3"])
    keys.add(plan_sweep(images, looked_at_more_often, {"temperature": ("0.3",)}, [0])[0].key)
    assert len(keys) == 2


def test_the_paper_s_grids_are_the_default() -> None:
    assert {axis: len(values) for axis, values in GRIDS.items()} == {
        "input_size": 5, "embedding_size": 3, "temperature": 4, "positive_weight": 4, "loss": 4, "sampler": 2,
    }  # fmt: skip
    assert parse_axes(["train.learning_rate=1e-4, 1e-3,1e-4", "loss"]) == {
        "learning_rate": ("1e-4", "1e-3"),
        "loss": GRIDS["loss"],
    }
    for texts, why in (
        (["speed"], "'speed' is not known"),
        (["loss="], "'loss' has no values"),
        (["loss", "loss=supcon"], "'loss' is there twice"),
        (["seed=1,2"], "'seed' is set by --seeds"),
    ):
        with pytest.raises(InputError, match=why):
            parse_axes(texts)


def test_a_device_is_part_of_what_was_measured(run: Run) -> None:
    images, axes = labelled_images(run), {"temperature": ("0.3",)}
    auto = with_overrides(SETTINGS, ["train.precision=auto"])
    here, there = (plan_sweep(images, auto, axes, [0], device)[0] for device in ("cpu", "cuda"))
    assert here.key != there.key and there.train.precision == "bf16" and here.train.precision in ("bf16", "float32")


def test_a_training_that_diverged_is_a_row_and_not_the_end(run: Run) -> None:
    images, axes = labelled_images(run), {"learning_rate": ("0.002", "1e18")}
    rows = list(sweep(run, plan_sweep(images, SETTINGS, axes, [0])))
    refused = [row for row in rows if "refused" in row]
    assert len(refused) == 1 and "diverged" in in_words(refused[0])
    fine, gone = tabulate(rows, axes)
    assert "knn_accuracy" in fine and "knn_accuracy" not in gone and as_text(gone)["runs"] == "1"


def test_where_nothing_can_be_held_out_it_is_said_before_anything_is_trained(run: Run) -> None:
    images = replace(labelled_images(run), groups=["one"] * len(labelled_images(run)))
    with pytest.raises(InputError, match="1 group.s. nothing can be held out to choose settings on"):
        plan_sweep(images, SETTINGS, AXES, [0])


def test_a_mistake_is_found_before_the_first_training(run: Run) -> None:
    images = labelled_images(run)
    with pytest.raises(SpecError, match="temperatur"):
        plan_sweep(images, SETTINGS, {"temperatur": ("1",)}, [0])
    with pytest.raises(SpecError, match="temperature"):
        plan_sweep(images, SETTINGS, {"temperature": ("0.3", "-1")}, [0])
    with pytest.raises(InputError, match="a tuple of M = 20"):
        plan_sweep(images, with_overrides(SETTINGS, ["train.m=20", "train.n=2"]), {"sampler": ("tuples",)}, [0])

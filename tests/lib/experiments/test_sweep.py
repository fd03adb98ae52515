"""Sweeps: each training once, whoever measures it and however often they are asked."""

from __future__ import annotations

import pytest

from damage_atlas.errors import InputError, SpecError
from damage_atlas.experiments.data import catalogued, with_validation
from damage_atlas.experiments.plots import draw_axes
from damage_atlas.experiments.sweep import GRIDS, SCORES, as_text, parse_axis, plan_sweep, sweep, tabulate
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
    assert parse_axis("train.learning_rate=1e-4, 1e-3") == ("learning_rate", ("1e-4", "1e-3"))
    assert parse_axis("loss") == ("loss", GRIDS["loss"])
    with pytest.raises(InputError, match="axis 'speed' is not known"):
        parse_axis("speed")


def test_a_mistake_is_found_before_the_first_training(run: Run) -> None:
    images = labelled_images(run)
    with pytest.raises(SpecError, match="temperatur"):
        plan_sweep(images, SETTINGS, {"temperatur": ("1",)}, [0])
    with pytest.raises(SpecError, match="temperature"):
        plan_sweep(images, SETTINGS, {"temperature": ("0.3", "-1")}, [0])
    with pytest.raises(InputError, match="a tuple of M = 20"):
        plan_sweep(images, with_overrides(SETTINGS, ["train.m=20", "train.n=2"]), {"sampler": ("tuples",)}, [0])

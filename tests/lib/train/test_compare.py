"""Whether a new model version is worse than the one in use."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from damage_atlas.store import Run, load_model_card, resolve_model
from damage_atlas.train import train_model
from damage_atlas.train.compare import is_worse
from tests.lib.train.test_loop import training_run
from tests.support.small_archive import make_labelled

GOOD = ("train.iterations=60", "train.learning_rate=0.002")
THROWN_ABOUT = ("train.iterations=1", "train.learning_rate=1000")


def test_a_few_images_more_or_less_are_chance() -> None:
    assert not _is_worse(lost=2, won=0, same=98)
    assert not _is_worse(lost=12, won=8, same=80)
    assert not _is_worse(lost=4, won=0, same=96)
    assert _is_worse(lost=5, won=0, same=95)


def test_more_than_a_twentieth_is_worse_whatever_chance_says() -> None:
    assert _is_worse(lost=2, won=0, same=28)
    assert not _is_worse(lost=0, won=2, same=28)


def test_a_certain_loss_of_less_than_a_hundredth_does_not_matter() -> None:
    assert not _is_worse(lost=90, won=0, same=9910)
    assert _is_worse(lost=110, won=0, same=9890)


def test_images_of_one_photo_count_together() -> None:
    """Five tiles of one photo are one thing that went wrong."""
    assert _is_worse(lost=5, won=0, same=95)
    assert not _is_worse(lost=5, won=0, same=95, groups=[*["photo"] * 5, *map(str, range(95))])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("images") / "images", each=24)


def test_models_of_other_sizes_and_other_classes_are_compared_too(tmp_path: Path, images: Path) -> None:
    first = _trained(tmp_path, images, *GOOD)
    larger = _trained(tmp_path, images, *THROWN_ABOUT, "train.input_size=48")
    facts = larger.artifact("train").facts
    assert facts["compared_with"] == first.spec.run_id and facts["promoted"] is False
    # The one in use is asked, not its card: on the same images, by the same pixels as in its own training.
    assert facts["knn_accuracy_before"] == first.artifact("train").facts["scores"]["knn_accuracy"]

    held_out = load_model_card(first.store, "m", first.spec.run_id).images["test"]
    assert facts["compared_images"] == held_out

    renamed = tmp_path / "renamed"  # in the same order, so that the same images are held out
    for folder in images.iterdir():
        shutil.copytree(folder, renamed / f"{folder.name}-2")
    others = _trained(tmp_path, renamed, *THROWN_ABOUT).artifact("train").facts
    assert set(others["classes"]).isdisjoint(facts["classes"])
    names = ("compared_with", "compared_images", "knn_accuracy_before")
    assert [others[name] for name in names] == [facts[name] for name in names]


def test_what_taught_the_model_in_use_says_nothing_of_it(tmp_path: Path, images: Path) -> None:
    first = _trained(tmp_path, images, *GOOD)
    dealt_anew = _trained(tmp_path, images, *GOOD, "catalog.seed=1")
    both = [_sides(run) for run in (first, dealt_anew)]
    held_out_by_both = {image_id for image_id, side in both[0].items() if side == both[1][image_id] == "test"}
    facts = dealt_anew.artifact("train").facts
    assert 5 <= len(held_out_by_both) == facts["compared_images"] < list(both[1].values()).count("test")
    hardly_any = _trained(tmp_path, images, *GOOD, "catalog.test_share=0.05")
    assert hardly_any.artifact("train").facts["compared_with"] is None


def test_a_model_in_use_that_cannot_be_read_is_replaced(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = _trained(tmp_path, images, *GOOD)
    (tmp_path / load_model_card(first.store, "m", first.spec.run_id).weights.key).write_bytes(b"not weights")
    second = _trained(tmp_path, images, *THROWN_ABOUT)
    assert second.artifact("train").facts["compared_with"] is None
    assert "no comparison with the version of m in use: ContractError" in caplog.text
    assert resolve_model(second.store, "m").version == second.spec.run_id


def _is_worse(lost: int, won: int, same: int, groups: list[str] | None = None) -> bool:
    was_right = np.array([True] * lost + [False] * won + [True] * same)
    right = np.array([False] * lost + [True] * won + [True] * same)
    return is_worse(right, was_right, groups or [str(place) for place in range(len(right))])


def _sides(run: Run) -> dict[str, str]:
    table = run.read_table("catalog", "observations.parquet", ["image_id", "split"])
    return dict(zip(table["image_id"].to_pylist(), table["split"].to_pylist(), strict=True))


def _trained(folder: Path, images: Path, *assignments: str) -> Run:
    run = training_run(folder, images, *assignments)
    train_model(run)
    return run

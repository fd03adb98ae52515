"""The training loop's pure parts, and what it does when a run goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from damage_atlas.errors import InputError
from damage_atlas.pipeline import run_stage
from damage_atlas.spec import Settings, TrainSpec, with_overrides
from damage_atlas.store import Store, start_run
from damage_atlas.train.loop import learning_rate
from tests.support.small_archive import make_labelled


def test_the_rate_is_constant_unless_asked() -> None:
    spec = TrainSpec(learning_rate=0.01, iterations=50)
    assert {learning_rate(spec, i) for i in range(50)} == {0.01}


def test_a_cosine_starts_at_the_rate_and_ends_near_nothing() -> None:
    spec = TrainSpec(learning_rate=0.01, iterations=50, schedule="cosine")
    rates = [learning_rate(spec, i) for i in range(50)]
    assert rates[0] == 0.01 and rates[25] == pytest.approx(0.005) and rates[-1] < 2e-5
    assert rates == sorted(rates, reverse=True)


def test_a_training_that_diverges_says_so_and_registers_nothing(tmp_path: Path) -> None:
    settings = with_overrides(
        Settings(), ["train.input_size=32", "train.iterations=30", "train.batch_size=12", "train.learning_rate=1e30"]
    )
    store = Store(tmp_path / "store")
    asked = {"kind": "train", "archive": "a", "model": "m", "settings": settings}
    run = start_run(store, images=str(make_labelled(tmp_path / "images", each=6)), **asked)  # type: ignore[arg-type]
    run_stage(run, "catalog")
    with pytest.raises(InputError, match=r"diverged.*Lower train\.learning_rate"):
        run_stage(run, "train")
    assert not list(store.list("models/m/promotions"))
    again = start_run(store, images=run.spec.images, **asked)  # type: ignore[arg-type]
    assert again.key != run.key, "what was refused is not continued"

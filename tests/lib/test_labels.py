"""What class names say."""

from __future__ import annotations

import pytest

from damage_atlas.labels import is_undamaged


@pytest.mark.parametrize(
    "label",
    [
        "sound",
        "deck_non_crack",
        "Normal",
        "no damage",
        "no-damage",
        "OK",
        "no_crack+clean",
        "not damaged",
        "intact",
        "pavement uncracked",
    ],
)
def test_words_for_undamaged(label: str) -> None:
    assert is_undamaged(label)


@pytest.mark.parametrize("label", ["not_ok", "NOT OK", "non-intact", "no good", "crack+background", "sound+crack"])
def test_words_that_are_denied_or_stand_beside_damage(label: str) -> None:
    assert not is_undamaged(label)


@pytest.mark.parametrize(
    "label",
    [
        "crack",
        "nodule",
        "normality",
        "background_loss",
        "abnormal",
        "soundhole",
        "inclusion",
        "obstacle",
        "disconnect",
        "rolled-in_scale",
        "soundness_loss",
    ],
)
def test_words_that_only_look_like_it(label: str) -> None:
    assert is_undamaged(label) == (label == "background_loss")

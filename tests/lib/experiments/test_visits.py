"""The experiment's archive holds what its docstring says, and its figure is what it is called."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from damage_atlas.catalog.manifest import read_manifest
from damage_atlas.demo.damage import MODES
from damage_atlas.experiments.visits import (
    DELIVERIES,
    MILD,
    PLACES,
    SEVERE,
    SOUND,
    VisitPlan,
    found_share,
    write_deliveries,
)

SEVERE_FORMS = {layer for forms in SEVERE.values() for layer in forms}


def test_forms_are_the_demo_s_and_no_mild_one_is_severe() -> None:
    assert all(mode in MODES[name] for name, mode in (*MILD, *SOUND, *SEVERE_FORMS))
    assert not SEVERE_FORMS & (MILD.keys() | set(SOUND))


@pytest.mark.parametrize("draw", [1, 2])
def test_severe_damage_lies_on_the_severe_assets_alone(draw: int) -> None:
    plan = VisitPlan(100, draw)
    assert len(plan.severe) == 8
    severe: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for delivery in range(len(DELIVERIES)):
        for image in plan.images(delivery):
            assert image.shot.asset is not None and image.shot.severity is not None
            if image.shot.layers[0] in SEVERE_FORMS:
                assert image.shot.severity >= 0.7
                severe[image.shot.asset.name][delivery] += 1
            else:
                assert image.shot.severity <= 0.5
    assert set(severe) == {plan.name(asset) for asset in plan.severe}
    assert all(found[len(DELIVERIES) - 1] > 0 for found in severe.values())
    assert 3 <= sum(found[0] > 0 for found in severe.values()) <= 4, "half of them from the start"


def test_places_are_seen_again_and_frames_come_twice() -> None:
    images = [list(VisitPlan(60, 1).images(delivery)) for delivery in range(2)]
    for found in images:
        places = {(image.shot.group, round(image.position_m / 5)) for image in found}
        assert 0.85 < len(places) / (60 * PLACES) < 0.95
        assert 1.05 < len(found) / len(places) < 1.15
        assert len({image.shot.file for image in found}) == len(found)
    assert not {i.shot.rng_key for i in images[0]} & {i.shot.rng_key for i in images[1]}, "photographed anew"
    assert [i.shot for i in images[0]] != [i.shot for i in VisitPlan(60, 2).images(0)]


def test_a_delivery_and_its_manifest(tmp_path: Path) -> None:
    plan = VisitPlan(2, 1)
    for delivery in range(2):
        write_deliveries(plan, tmp_path, delivery)
        said = read_manifest((tmp_path / "manifest.csv").read_bytes(), "manifest.csv")
        assert {file for file in said if not (tmp_path / file).is_file()} == set()
        assert len(said) == sum(len(list(plan.images(d))) for d in range(delivery + 1))
    with (tmp_path / "manifest.csv").open(newline="", encoding="utf-8") as file:
        assert {row["asset_id"] for row in csv.DictReader(file)} == {plan.name(0), plan.name(1)}


def test_found_share_counts_ties_by_their_expectation() -> None:
    scores = {"a": 5.0, "b": 4.0, "c": 1.0, "d": 1.0, "e": 0.0}
    assert found_share(scores, ["a", "b"], 2) == 1
    assert found_share(scores, ["a", "e"], 2) == 0.5
    assert found_share(scores, ["c"], 3) == 0.5
    assert found_share(dict.fromkeys("abcd", 0.0), ["a"], 1) == 0.25

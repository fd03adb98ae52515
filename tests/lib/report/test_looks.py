"""Places and moments count once, and pairs of the same place are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage_atlas.report.looks import Look, SamePlace, by_inspection, inspection_of, once_each, pair_places

SAME = SamePlace(0.5, 1.0)
NINE = datetime(2026, 3, 1, 9, tzinfo=UTC)


def look(name: str, cluster: int | None = 1, **known: Any) -> Look:
    return Look(name, "pier-3", known.pop("inspection", "a"), cluster, known.pop("label", "crack"), 3.0, **known)


def test_position_within_the_tolerance_is_one_place() -> None:
    assert SAME.distance(look("a", position_m=3.0), look("b", position_m=3.5)) == pytest.approx(1)
    assert SAME.distance(look("a", position_m=3.0), look("b", position_m=3.51)) is None


def test_a_clock_goes_round() -> None:
    a = look("a", position_m=3.0, clock=11.6)
    assert SAME.distance(a, look("b", position_m=3.0, clock=0.4)) == pytest.approx(0.8)
    assert SAME.distance(a, look("b", position_m=3.0, clock=12.0)) == pytest.approx(0.4)
    assert SAME.distance(a, look("b", position_m=3.0, clock=6.0)) is None
    assert SAME.distance(a, look("b", position_m=3.0)) is None, "a known clock is not an unknown one"


def test_element_and_tile_must_be_equal() -> None:
    a = look("a", element="bearing", tile=(0, 0, 256, 256))
    assert a.has_place and SAME.distance(a, replace(a, observation_id="b")) == 0
    assert SAME.distance(a, replace(a, tile=(224, 0, 256, 256))) is None
    assert SAME.distance(a, replace(a, element="deck")) is None


@pytest.mark.parametrize("known", [{}, {"element": "deck"}, {"tile": (0, 0, 256, 256)}, {"clock": 3.0}])
def test_what_says_no_place(known: dict[str, Any]) -> None:
    assert not look("a", **known).has_place


def test_frames_of_a_place_count_once_by_majority_then_by_gravity() -> None:
    frames = [look(f"{i}", cluster, position_m=7.0 + 0.1 * i) for i, cluster in enumerate([1, 2, 2])]
    (one,) = once_each(frames, SAME)
    assert (one.cluster_id, one.count) == (2, 3)
    tied = [look("mild", 1, position_m=1.0), replace(look("grave", 2, position_m=1.0), severity=5.0)]
    assert [x.observation_id for x in once_each(tied, SAME)] == ["grave"]


def test_a_burst_counts_once_where_it_shows_one_thing() -> None:
    burst = [look(f"{i}", captured_at=NINE + timedelta(milliseconds=300 * i)) for i in range(4)]
    assert [x.count for x in once_each(burst, SAME)] == [4]
    assert len(once_each([*burst, replace(burst[0], observation_id="other", cluster_id=2)], SAME)) == 2
    later = replace(burst[0], observation_id="later", captured_at=NINE + timedelta(seconds=20))
    assert len(once_each([*burst, later], SAME)) == 2
    assert len(once_each([look("x"), look("y")], SAME)) == 2, "without a time nobody knows that it is one moment"
    day = NINE.replace(hour=0)
    assert len(once_each([look(f"{i}", captured_at=day) for i in range(4)], SAME)) == 4, "a day is no moment"


def test_a_crawler_that_stands_still_shows_one_thing_every_ten_seconds() -> None:
    film = [look(f"{i:02d}", film=(None, "crawl.mp4"), film_time_s=float(i)) for i in range(25)]
    assert [x.count for x in once_each(film, SAME)] == [10, 10, 5]
    dated = [replace(x, captured_at=NINE + timedelta(seconds=x.film_time_s)) for x in film]
    assert [x.count for x in once_each(dated, SAME)] == [10, 10, 5]
    mixed = [replace(x, cluster_id=int(x.film_time_s) % 2) for x in film]
    assert sorted(x.count for x in once_each(mixed, SAME)) == [2, 3, 5, 5, 5, 5]
    assert len(once_each([film[0], replace(film[1], film=(None, "other.mp4"))], SAME)) == 2
    placed = [replace(x, position_m=x.film_time_s) for x in film]
    assert len(once_each(placed, SAME)) > 10, "where the place is known it decides"


def test_tiles_of_a_photo_are_looks_of_their_own() -> None:
    tiles = [look(f"{x}", tile=(x, 0, 256, 256), captured_at=NINE) for x in (0, 224, 448)]
    assert len(once_each(tiles, SAME)) == 3


def test_inspections_come_in_the_order_of_time() -> None:
    looks = [
        look("1", inspection="zebra", captured_at=NINE),
        look("2", inspection="ant", captured_at=NINE + timedelta(days=90)),
    ]
    assert list(by_inspection(looks)) == ["zebra", "ant"]
    delivered = [replace(looks[0], delivery="2026-06"), replace(looks[1], delivery="2026-03")]
    assert list(by_inspection(delivered)) == ["ant", "zebra"], "a delivery's name goes before a camera's clock"


def test_an_inspection_has_the_best_name_there_is() -> None:
    row: dict[str, Any] = {"inspection_id": None, "delivery": None, "captured_at": NINE}
    assert inspection_of(row) == "2026-03-01"
    assert inspection_of(row | {"captured_at": None}) == "undated"
    assert inspection_of(row | {"delivery": "d1"}) == "d1"
    assert inspection_of(row | {"delivery": "d1", "inspection_id": "d1/pier-3"}) == "d1/pier-3"


def test_the_nearest_pair_up() -> None:
    earlier = [look("a1", position_m=1.0), look("a2", position_m=1.6)]
    later = [look("b1", position_m=1.4), look("b2", position_m=9.0)]
    pairs, lost, fresh = pair_places(earlier, later, SAME)
    assert [(a.observation_id, b.observation_id) for a, b in pairs] == [("a2", "b1")]
    assert [x.observation_id for x in lost] == ["a1"]
    assert [x.observation_id for x in fresh] == ["b2"]


places = st.lists(
    st.tuples(
        st.none() | st.floats(0, 5, width=32), st.none() | st.floats(0, 12, width=32), st.sampled_from([None, "e"])
    ),
    max_size=12,
)


def _looks(name: str, found: Sequence[tuple[float | None, float | None, str | None]]) -> list[Look]:
    return [
        look(f"{name}{i}", position_m=position, clock=clock, element=element)
        for i, (position, clock, element) in enumerate(found)
    ]


@given(places, places)
def test_pairs_are_those_of_a_plain_search(first: Any, second: Any) -> None:
    earlier, later = _looks("a", first), _looks("b", second)
    pairs, lost, fresh = pair_places(earlier, later, SAME)
    # As one would say it: take the nearest two that are left, until none are near.
    left_a, left_b = ([x for x in side if x.has_place] for side in (earlier, later))
    expected = set()
    while True:
        near = [
            (apart, a.observation_id, b.observation_id)
            for a in left_a
            for b in left_b
            if (apart := SAME.distance(a, b)) is not None
        ]
        if not near:
            break
        _, one, other = min(near)
        expected.add((one, other))
        left_a = [a for a in left_a if a.observation_id != one]
        left_b = [b for b in left_b if b.observation_id != other]
    assert {(a.observation_id, b.observation_id) for a, b in pairs} == expected
    assert {x.observation_id for x in lost} == {x.observation_id for x in left_a}
    assert {x.observation_id for x in fresh} == {x.observation_id for x in left_b}


@given(places)
def test_counting_once_loses_nothing_and_parts_what_is_apart(found: Any) -> None:
    looks = _looks("a", found)
    once = once_each(looks, SAME)
    assert sum(x.count for x in once) == len(looks)
    assert once == once_each(list(reversed(looks)), SAME), "the order of rows does not matter"
    for x in looks:
        if x.has_place:
            assert any(SamePlace(1.0, 2.0).distance(x, y) is not None for y in once), "a place is not lost"

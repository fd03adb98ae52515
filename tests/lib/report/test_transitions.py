"""What happened to an asset between two inspections."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage_atlas.report.looks import Look, SamePlace
from damage_atlas.report.time import asset_courses, clusters_over_time
from damage_atlas.report.transitions import KINDS, all_rows, follow, transitions_table

SAME = SamePlace()
GRADES = {1: 0.0, 2: 2.0, 3: 2.0, 4: 5.0, None: 3.0}


def look(name: str, delivery: str, cluster: int | None, position: float | None = None, **known: Any) -> Look:
    asset = known.pop("asset", "run-7")
    label = known.pop("label", None if cluster is not None else "crack")
    return Look(name, asset, delivery, cluster, label, GRADES[cluster], delivery=delivery, position_m=position, **known)


def test_places_are_compared_one_by_one() -> None:
    looks = [look(f"a{i}", "d1", c, 10.0 * i) for i, c in enumerate([1, 1, 2, 4, 2, 1])]
    looks += [look(f"b{i}", "d2", c, 10.0 * i + 0.2) for i, c in enumerate([1, 4, 3, 2, None])]
    (course,) = follow(looks, SAME)
    found = {(r["kind"], r["from_cluster_id"], r["to_cluster_id"]): r for r in course.rows}
    assert {key: row["looks"] for key, row in found.items()} == {
        ("steady", 1, 1): 1,
        ("progression", 1, 4): 1,
        ("moved", 2, 3): 1,
        ("improvement", 4, 2): 1,
        ("progression", 2, None): 1,
    }
    worst = course.rows[0]
    assert (worst["kind"], worst["to_cluster_id"], worst["positions_m"]) == ("progression", 4, [10.2])
    assert (worst["from_observation_id"], worst["to_observation_id"]) == ("a1", "b1")
    assert (course.seen_again, course.places_before, course.coverage) == (5, 6, pytest.approx(5 / 6))
    assert course.worse == {"b1": 1.0, "b4": 1.0}
    assert sorted(x.observation_id for x in course.state) == ["a5", "b0", "b1", "b2", "b3", "b4"], (
        "a5 was not seen again"
    )


def test_a_place_that_was_passed_over_is_compared_with_its_look_before() -> None:
    looks = [look("a", "d1", 1, 5.0), look("x", "d2", 1, 90.0), look("b", "d3", 4, 5.0)]
    (course,) = follow(looks, SAME)
    (row,) = course.rows
    assert (row["kind"], row["from_inspection"], row["to_inspection"]) == ("progression", "d1", "d3")


def test_a_shift_of_shares_counts_only_beyond_chance() -> None:
    def kinds(n: int) -> set[str]:
        looks = [look(f"a{i}", "d1", 1) for i in range(n)]
        looks += [look(f"b{i}", "d2", 4 if i < n // 2 else 1) for i in range(n)]
        return {row["kind"] for row in follow(looks, SAME)[0].rows}

    assert kinds(4) == {"unclear", "steady"}
    assert kinds(20) == {"progression", "steady"}


def test_tiles_of_an_overview_are_no_shift_and_no_independent_looks() -> None:
    box = [(256 * i, 0, 256, 256) for i in range(60)]
    close = [look(f"a{i}", "d1", 4) for i in range(12)] + [look(f"b{i}", "d2", 4) for i in range(12)]
    overview = [look(f"t{i}", "d1", 1, tile=box[i], photo="over.jpg") for i in range(60)]
    assert {row["kind"] for row in follow([*close, *overview], SAME)[0].rows} == {"steady"}
    # Half of one photo's tiles are grave now: that is one photo, and says little.
    again = [look(f"u{i}", "d2", 4 if i < 30 else 1, tile=box[i], photo="again.jpg") for i in range(60)]
    assert {row["kind"] for row in follow([*overview, *again], SAME)[0].rows} == {"steady", "unclear"}


def test_what_a_cluster_lost_goes_to_those_that_gained() -> None:
    looks = [look(f"a{i}", "d1", c) for i, c in enumerate([1] * 30 + [2] * 30)]
    looks += [look(f"b{i}", "d2", c) for i, c in enumerate([1] * 30 + [4] * 20 + [None] * 10)]
    (course,) = follow(looks, SAME)
    moved = {(r["from_cluster_id"], r["to_cluster_id"]): r["looks"] for r in course.rows}
    assert moved == pytest.approx({(1, 1): 30, (2, 4): 20, (2, None): 10})
    assert sum(course.worse.values()) == pytest.approx(30)


def test_one_inspection_has_no_transition() -> None:
    courses = follow([look("a", "d1", 4, 1.0), look("b", "d1", 1)], SAME)
    assert all_rows(courses) == [] and transitions_table([]).num_rows == 0
    assert courses[0].coverage is None and courses[0].worse == {}
    assert follow([], SAME) == []


def test_frames_of_one_place_count_once_over_time() -> None:
    looks = [look(f"a{i}", "d1", 2, 5.0 + 0.01 * i) for i in range(9)] + [look("b", "d2", 2, 5.0)]
    periods, totals, courses = clusters_over_time(follow(looks, SAME), [look("c", "d2", None)], [2])
    assert (periods, totals) == (["d1", "d2"], [1, 2])
    assert {c.cluster_id: c.looks for c in courses} == {2: [1, 1], None: [0, 1]}
    assert courses[0].change == -0.5
    assert [seen.grades for seen in asset_courses(follow(looks, SAME))[0].inspections] == [{"2": 1}, {"2": 1}]


@st.composite
def histories(draw: st.DrawFn) -> list[Look]:
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["p", "q"]),
                st.sampled_from(["d1", "d2", "d3"]),
                st.sampled_from([1, 2, 3, 4, None]),
                st.none() | st.integers(0, 4),
            ),
            max_size=30,
        )
    )
    return [
        look(f"{i}", delivery, cluster, None if at is None else 2.0 * at, asset=asset)
        for i, (asset, delivery, cluster, at) in enumerate(rows)
    ]


@given(histories())
def test_the_table_accounts_for_every_pair_and_share(looks: list[Look]) -> None:
    courses = follow(looks, SAME)
    rows = all_rows(courses)
    assert transitions_table(rows).num_rows == len(rows)
    assert [KINDS.index(row["kind"]) for row in rows] == sorted(KINDS.index(row["kind"]) for row in rows)
    for course in courses:
        names = list(course.inspections)
        for before, name in zip(names, names[1:], strict=False):
            of_shares = [r for r in course.rows if r["to_inspection"] == name and r["matched_by"] == "share"]
            both = [[x for x in course.inspections[n] if not x.has_place] for n in (before, name)]
            if all(both):
                # Only estimates below half a look are left out.
                assert sum(r["looks"] for r in of_shares) <= len(both[1]) + 1e-6
                assert {r["of_looks"] for r in of_shares} <= {len(both[1])}
        seen: dict[float, int] = {}
        pairs: Counter[str] = Counter()
        for name in names:
            for x in course.inspections[name]:
                if x.position_m is not None:
                    pairs[name] += x.position_m in seen
                    seen[x.position_m] = 1
        found: Counter[str] = Counter()
        for row in course.rows:
            if row["matched_by"] == "place":
                found[row["to_inspection"]] += int(row["looks"])
        assert +found == +pairs

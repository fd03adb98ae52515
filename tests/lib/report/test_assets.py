"""The visit list: what raises a score, what a decision does, where grades come from."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from damage_atlas.contracts import Decision
from damage_atlas.report.assets import assets_table, rank_assets
from damage_atlas.report.looks import Look, SamePlace
from damage_atlas.report.severity import CodeTable, grade_of_image, weight
from damage_atlas.report.transitions import follow
from damage_atlas.spec import Settings, parse_document
from tests.architecture.repository import ROOT

LABELS = {1: "sound", 2: "scratch", 3: "crack", 4: "collapse"}
GRADES = {1: 0.0, 2: 1.0, 3: 3.0, 4: 5.0}


def looks(asset: str, clusters: list[int], delivery: str = "d1", placed: bool = True) -> list[Look]:
    return [
        Look(
            f"{asset}-{delivery}-{i}", asset, delivery, cluster, LABELS[cluster], GRADES[cluster], delivery=delivery,
            position_m=10.0 * i if placed else None,
        )
        for i, cluster in enumerate(clusters)
    ]  # fmt: skip


def rank(*assets: list[Look], **how: Any) -> list[dict[str, Any]]:
    return rank_assets(follow([x for asset in assets for x in asset], SamePlace()), LABELS, **how)


def order(rows: list[dict[str, Any]]) -> list[str]:
    return [row["asset_id"] for row in rows]


def test_severity_counts_double_for_each_grade() -> None:
    assert [weight(grade) for grade in (0, 1, 2, 4, 5)] == [0, 1 / 16, 1 / 8, 1 / 2, 1]
    rows = rank(looks("mild", [3, 1, 1, 1]), looks("grave", [4, 1, 1, 1]), looks("sound", [1, 1, 1, 1]))
    assert order(rows) == ["grave", "mild"], "what shows no damage is left out"
    assert rows[0]["score"] == pytest.approx(4 * rows[1]["score"])
    assert (rows[0]["severity"], rows[0]["extent"], rows[0]["looks"]) == (5, 0.25, 4)


def test_extent_change_and_rarity_raise_a_score() -> None:
    assert order(rank(looks("few", [3, 1, 1, 1]), looks("many", [3, 3, 1, 1]))) == ["many", "few"]
    was = [looks("worse", [1, 1]), looks("as ever", [3, 1])]
    now = [looks("worse", [3, 1], "d2"), looks("as ever", [3, 1], "d2")]
    rows = rank(*was, *now)
    assert order(rows) == ["worse", "as ever"]
    assert (rows[0]["change"], rows[1]["change"]) == (1, 0)
    assert rows[0]["score"] == pytest.approx(2 * rows[1]["score"])
    assert (
        rows[0]["progression"] == "1 of 2 places from cluster 1 (sound, grade 0) to cluster 3 (crack, grade 3) since d1"
    )
    common = [looks(f"common-{i}", [3, 1]) for i in range(3)]
    born = rank(*common, looks("born", [2, 1]), born={2})
    assert born[-1]["asset_id"] == "born" and born[-1]["change"] == 1
    assert born[-1]["rarity"] == 1 and born[0]["rarity"] == pytest.approx(0.2075, abs=1e-3)


def test_the_score_is_the_stated_product_of_the_kind_that_counts_most() -> None:
    others = [looks(f"other-{i}", [1, 1, 1, 1, 1]) for i in range(3)]
    (row,) = rank(*others, looks("one", [1, 1, 2, 2, 2]), looks("one", [4, 4, 2, 2, 1], "d2"))
    # Of five places two went from sound to collapse, and only this asset shows it; two scratches are as ever.
    assert row["score"] == pytest.approx(100 * 1 * 0.4 * 2 / 3 * (1 + 1) * (1 + 1), abs=1e-3)
    assert (row["severity"], row["extent"], row["change"], row["rarity"]) == (5, 0.4, 1, 1)
    assert row["reasons"][0] == "2 of 5 in cluster 4 (collapse, grade 5), 2 worse than before, on no other asset"
    assert row["clusters"] == [2, 4]


def test_mild_damage_of_many_kinds_is_not_grave_but_breaks_ties() -> None:
    assert order(rank(looks("many", [2, 3, 1, 1]), looks("one", [3, 3, 1, 1]))) == ["one", "many"]
    assert order(rank(looks("alone", [4, 1, 1]), looks("beside", [4, 2, 1]))) == ["beside", "alone"]


def test_a_single_look_is_believed_by_half() -> None:
    rows = rank(looks("once", [3, 1, 1, 1]), looks("often", [3, 3, 1, 1]))
    assert rows[0]["score"] / rows[1]["score"] == pytest.approx(2 * (2 / 3) / (1 / 2), rel=1e-3)


def test_an_overview_photo_does_not_dilute_close_ups() -> None:
    def of(asset: str, tiles: int) -> list[Look]:
        overview = [replace(look, photo="over.jpg") for look in looks(f"{asset}", [1] * tiles)]
        close = [
            replace(x, observation_id=f"{asset}-close-{i}") for i, x in enumerate(looks(asset, [4, 1], placed=False))
        ]
        return [*overview, *close]

    rows = rank(of("few", 2), of("many", 200))
    assert [row["extent"] for row in rows] == pytest.approx([1 / 3, 1 / 3])


def test_reasons_say_what_was_not_seen() -> None:
    rows = rank(looks("gone", [4, 1, 1]), looks("half", [4, 1, 1, 1]), looks("half", [4, 1], "d2"))
    told = {row["asset_id"]: row for row in rows}
    assert "not in the newest delivery; last seen in d1" in told["gone"]["reasons"]
    assert "2 of 4 places known before were seen again" in told["half"]["reasons"]
    assert told["half"]["coverage_share"] == 0.5 and told["gone"]["coverage_share"] is None


def decision(asset: str, what: str, score: float, note: str = "") -> dict[str, Decision]:
    moment = datetime(2026, 5, 1, tzinfo=UTC)
    made = Decision.model_validate(
        {"asset_id": asset, "decision": what, "decided_by": "A. Sato", "version": 3, "score": score, "note": note,
         "decided_at": moment}
    )  # fmt: skip
    return {asset: made}


@pytest.mark.parametrize("what", ["defer", "known"])
def test_what_is_left_alone_comes_last_until_it_gets_worse(what: str) -> None:
    assets = (looks("mild", [3, 1]), looks("grave", [4, 1]))
    score = rank(*assets)[0]["score"]
    rows = rank(*assets, decisions=decision("grave", what, score, "scaffold stands"))
    assert order(rows) == ["mild", "grave"]
    assert (rows[1]["decision"], rows[1]["decided_by"], rows[1]["note"]) == (what, "A. Sato", "scaffold stands")
    rows = rank(*assets, decisions=decision("grave", what, score / 2))
    assert order(rows) == ["grave", "mild"] and "listed again" in rows[0]["reasons"][-1]
    assert assets_table(rows)["decided_at"].to_pylist() == [datetime(2026, 5, 1, tzinfo=UTC), None]


def test_what_is_left_alone_is_listed_again_for_a_kind_that_came_later() -> None:
    """However small it is beside the damage that was known."""
    assets = (looks("mild", [3, 1]), looks("grave", [4, 4, 4, 3]))
    known = decision("grave", "known", rank(*assets)[0]["score"])  # made of version 3
    kind = {look.severity: look.cluster_id for look in assets[1]}
    assert order(rank(*assets, decisions=known, born_in={kind[3.0]: 3})) == ["mild", "grave"]
    rows = rank(*assets, decisions=known, born_in={kind[3.0]: 4})
    assert order(rows) == ["grave", "mild"]
    assert f"cluster {kind[3.0]} came after it was decided on (version 3)" in rows[0]["reasons"][-1]


def test_a_decision_keeps_an_asset_listed_and_none_takes_it_back() -> None:
    sound = looks("sound", [1, 1])
    assert order(rank(sound, decisions=decision("sound", "visit", 0))) == ["sound"]
    assert rank(sound, decisions=decision("sound", "none", 0)) == []
    rows = rank(looks("grave", [4]), decisions=decision("grave", "none", 0))
    assert (rows[0]["decision"], rows[0]["decided_by"]) == ("none", None)


@pytest.mark.parametrize(("own", "given", "of_cluster", "by_hand", "grade"), [
    (4, True, 0, None, 4),  # a spalling among sound surfaces
    (4, False, 0, None, 0),
    (0, True, 4, None, 4),
    (4, True, 3, 1, 1),
    (4, False, None, None, 4),
])  # fmt: skip
def test_a_label_that_came_with_the_image_is_not_overruled_by_its_cluster(
    own: float, given: bool, of_cluster: float | None, by_hand: float | None, grade: float
) -> None:
    assert grade_of_image(own, given, of_cluster, by_hand) == grade


@pytest.mark.parametrize("order_of_looks", [1, -1])
def test_one_grave_image_in_a_mild_cluster_counts_for_itself(order_of_looks: int) -> None:
    """Whatever it is called: neither does it make the cluster grave, nor does the cluster make it mild."""
    seen = looks("mixed", [2] * 5)
    seen.append(
        replace(seen[0], observation_id=f"mixed-{'a' if order_of_looks > 0 else 'z'}", severity=5.0, position_m=99)
    )
    (row,) = rank(seen[::order_of_looks])
    assert row["severity"] == 5 and row["extent"] == pytest.approx(1 / 6) and row["looks"] == 6
    assert len(row["reasons"]) == 2 and row["clusters"] == [2]


def test_degenerate_lists() -> None:
    assert rank() == [] and assets_table([]).num_rows == 0
    assert rank(looks("only", [4], placed=False))[0]["rarity"] == 0


def test_grades_come_from_the_table_then_the_name() -> None:
    table = CodeTable({"crack": 2.0, "spalling": 4.0, "crack+rust": 5.0}, others=3.0)
    assert [table.grade(x) for x in ("crack", "CRACK", "crack+spalling", "crack+rust")] == [2, 2, 4, 5]
    assert [table.grade(x) for x in ("sound", "deck_non_crack", "dent", "crack+sound", None)] == [0, 0, 3, 2, 3]
    assert [table.source(x) for x in ("crack", "sound", "dent", "crack+dent")] == ["table", "name", "others", "others"]
    assert table.unused({"crack+dent"}, []) == ["crack+rust", "spalling"]
    by_hand = CodeTable({"cluster 16": 5.0, "cluster 99": 1.0})
    assert (by_hand.of_cluster(16), by_hand.of_cluster(1)) == (5, None)
    assert by_hand.unused({"crack"}, [16]) == ["cluster 99"]


@pytest.mark.parametrize("file", sorted((ROOT / "infra" / "severities").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_code_tables_are_settings(file: Path) -> None:
    settings = parse_document(Settings, file.read_text(encoding="utf-8"), file.name)
    grades = settings.report.severities
    assert len(grades) > 20 and max(grades.values()) == 5 and grades["sound"] == 0


def test_both_code_tables_are_shipped() -> None:
    assert {path.stem for path in (ROOT / "infra" / "severities").glob("*.yaml")} == {"pacp", "en-13508-2"}

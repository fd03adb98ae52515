"""Boxes and splits that a manifest gives."""

from __future__ import annotations

from typing import Any

import pytest

from damage_atlas.catalog.manifest import read_manifest
from damage_atlas.errors import InputError
from tests.support.image_archive import Archive, jpeg, put

HEAD = "file,label,tile_x,tile_y,tile_width,tile_height,split"


def catalogued(archive: Archive, *lines: str, **settings: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    put(archive.images, {"list.csv": "\n".join([HEAD, *lines]).encode()})
    return archive.build(labels="none", manifest=str(archive.images / "list.csv"), **settings)


def test_boxes_are_observations_with_labels_of_their_own(archive: Archive) -> None:
    put(archive.images, {"a.jpg": jpeg(1, 400, 200), "b.jpg": jpeg(2, 100, 100)})
    rows, facts = catalogued(
        archive, "a.jpg,crack,0,0,200,200,", "a.jpg,normal,200,0,300,200,", "b.jpg,rust,,,,,", tile_above=150
    )
    assert [(r["file"], r["labels"], r["tile_x"], r["tile_width"]) for r in rows] == [
        ("a.jpg", ["crack"], 0, 200),
        ("a.jpg", ["normal"], 200, 200),  # what lies outside is cut off
        ("b.jpg", ["rust"], None, None),
    ]
    assert len({r["image_id"] for r in rows}) == 3 and {r["group"] for r in rows} == {"a.jpg", "b.jpg"}
    assert facts["label_conflicts"]["count"] == 0 and facts["tiles"] == 2
    assert all(r["split"] for r in rows), "two labels of one file are no contradiction"


def test_one_box_under_two_labels_is_a_contradiction(archive: Archive) -> None:
    put(archive.images, {"a.jpg": jpeg(1, 400, 200), "copy.jpg": jpeg(1, 400, 200)})
    rows, facts = catalogued(
        archive, "a.jpg,crack,0,0,200,200,", "copy.jpg,rust,0,0,200,200,", "copy.jpg,crack,200,0,200,200,"
    )
    assert facts["label_conflicts"] == {"count": 2, "names": ["a.jpg", "copy.jpg"]}
    assert [r["split"] is None for r in rows] == [True, True, False]


def test_a_broken_picture_is_one_row_however_many_boxes_it_has(archive: Archive) -> None:
    put(archive.images, {"a.jpg": b"broken", "b.jpg": jpeg(2), "c.jpg": jpeg(3)})
    rows, _ = catalogued(archive, "a.jpg,crack,0,0,20,20,", "a.jpg,rust,20,0,20,20,", "b.jpg,x,,,,,", "c.jpg,x,,,,,")
    assert [(r["file"], r["status"]) for r in rows] == [("a.jpg", "quarantined"), ("b.jpg", "ok"), ("c.jpg", "ok")]


def test_a_split_that_is_given_is_kept_and_groups_follow_it(archive: Archive) -> None:
    put(archive.images, {f"{i}.jpg": jpeg(i) for i in range(12)})
    lines = [f"{i}.jpg,{'ab'[i % 2]},,,,,{'test' if i < 4 else 'train'}" for i in range(12)]
    rows, facts = catalogued(archive, *lines)
    assert [r["split"] for r in rows if int(r["file"][:-4]) < 4] == ["test"] * 4
    assert facts["splits"] == {"train": 8, "test": 4} and facts["notes"] == []
    side_car = "file,group\n" + "\n".join(f"{i}.jpg,{'torn' if i in (3, 4) else i}" for i in range(12))
    put(archive.images, {"groups.csv": side_car.encode()})
    _, facts = catalogued(archive, *lines, groups="groups.csv")
    assert facts["notes"] == ["1 groups are on both sides of the split, as the manifest has them: scores will flatter"]
    silent = [line.rpartition(",")[0] + "," if line.startswith("4.") else line for line in lines]
    rows, facts = catalogued(archive, *silent, groups="groups.csv")
    assert {r["split"] for r in rows if r["group"] == "torn"} == {"test"} and facts["notes"] == []


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["a.jpg,x,0,0,20,,"], "is no four whole numbers"),
        (["a.jpg,x,0,0,2.5,9,"], "is no four whole numbers"),
        (["a.jpg,x,-1,0,20,20,"], "x and y from 0"),
        (["a.jpg,x,0,0,0,20,"], "width and height from 1"),
        (["a.jpg,x,,,,,valid"], "'valid' is neither train nor test"),
        (["a.jpg,x,0,0,9,9,", "a.jpg,y,0,0,9,9,"], "row 2: 'a.jpg' is named twice"),
        (["a.jpg,x,,,,,", "a.jpg,y,0,0,9,9,"], "row 2: 'a.jpg' is named twice"),
        (["a.jpg,x,0,0,9,9,", "a.jpg,y,,,,,"], "row 2: 'a.jpg' is named twice"),
    ],
)
def test_what_a_manifest_must_not_say(lines: list[str], why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_manifest("\n".join([HEAD, *lines]).encode(), "list.csv")


def test_boxes_that_are_one_inside_the_picture_are_refused(archive: Archive) -> None:
    put(archive.images, {"a.jpg": jpeg(1, 100, 80)})
    with pytest.raises(InputError, match="two boxes of 'a.jpg' that are one inside the picture"):
        catalogued(archive, "a.jpg,x,0,0,100,80,", "a.jpg,y,0,0,120,80,")


def test_a_box_outside_its_picture_is_refused(archive: Archive) -> None:
    put(archive.images, {"a.jpg": jpeg(1, 100, 80)})
    with pytest.raises(InputError, match="box 96, 0, 50 x 50 of 'a.jpg' lies outside the picture, which has 100 x 80"):
        catalogued(archive, "a.jpg,x,96,0,50,50,")

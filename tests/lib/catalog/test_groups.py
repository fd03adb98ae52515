from __future__ import annotations

import pytest

from damage_atlas.catalog.groups import parse_side_car
from damage_atlas.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "file,group\na/x.jpg,g1\nb/y.jpg,g2\n",
        "\ufefffile,source_photo\r\na/x.jpg,g1\r\nb/y.jpg,g2\r\n",
        "split,group,file,crack\ntest,g1,./a/x.jpg,1\n\ntrain, g2 ,b/y.jpg,0\n",
    ],
)
def test_headers_of_real_side_cars(text: str) -> None:
    assert parse_side_car(text, "g.csv").groups == {"a/x.jpg": "g1", "b/y.jpg": "g2"}


def test_names_match_by_path_then_by_unique_name() -> None:
    side_car = parse_side_car("file,group\na/x.jpg,g1\ny.jpg,g2\nz.jpg,g3\nelsewhere.jpg,g4\n", "g.csv")
    files = ["a/x.jpg", "b/x.jpg", "b/y.jpg", "b/z.jpg", "c/z.jpg", "d.jpg"]
    matched, left_over = side_car.match(files)
    assert matched == {"a/x.jpg": "g1", "b/y.jpg": "g2"}
    assert left_over == ["elsewhere.jpg", "z.jpg"]


def test_quotes_commas_and_newlines_in_names() -> None:
    text = 'file,group\n"a, ""b"".jpg",g1\n"two\nlines.jpg",g2\n'
    assert parse_side_car(text, "g.csv").groups == {'a, "b".jpg': "g1", "two\nlines.jpg": "g2"}


def test_an_empty_group_is_no_group() -> None:
    assert parse_side_car("file,group\na.jpg,\nb.jpg,g\n", "g.csv").groups == {"b.jpg": "g"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "wanted are `file` and `group`"),
        ("name,group\na.jpg,g\n", "columns name, group; wanted"),
        ("file,label\na.jpg,g\n", "wanted are"),
        ("file;group\na.jpg;g\n", "separated by commas"),
        ("file,group\na.jpg\n", "line 2: 1 columns instead of 2"),
        ("file,group\na.jpg,g\na.jpg,h\n", "line 3: 'a.jpg' is in two groups"),
        ('file,group\n"a.jpg,g\n', "not a CSV file"),
    ],
)
def test_malformed_side_cars_say_where(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_side_car(text, "g.csv")
    assert "\n" not in error.value.message
    assert "g.csv" in error.value.message


def test_another_folders_side_car_is_refused() -> None:
    with pytest.raises(InputError, match="none of its 1 names is in the image folder"):
        parse_side_car("file,group\nz.jpg,g\n", "g.csv").match(["a.jpg"])

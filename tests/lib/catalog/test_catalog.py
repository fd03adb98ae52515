"""The stage on real folders: what it lists, what it refuses, and what it says about it."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from damage_atlas.catalog import build_catalog
from damage_atlas.contracts import CHANGES
from damage_atlas.errors import AtlasError, InputError, StoreError
from damage_atlas.images import PhotoReader, Source, Tile
from damage_atlas.spec import CatalogSpec, RunSpec, Settings
from damage_atlas.store import Run, Store, open_run
from tests.support.image_archive import Archive, by_file, jpeg, put


def test_a_labelled_folder(archive: Archive) -> None:
    put(
        archive.images,
        {f"{name}/{i}.jpg": jpeg(i * 10 + k) for k, name in enumerate("ab") for i in range(10)},
    )
    put(
        archive.images,
        {"a+b/both.JPG": jpeg(500), "loose.jpg": jpeg(501), "a/readme.txt": b"x", "Thumbs.db": b"x"},
    )
    rows, facts = archive.build()
    files = by_file(rows)
    assert len(rows) == 22
    assert files["a/0.jpg"]["labels"] == ["a"]
    assert files["a+b/both.JPG"]["labels"] == ["a", "b"]
    assert files["loose.jpg"]["labels"] == []
    assert files["loose.jpg"]["split"] is None
    assert files["a/0.jpg"]["asset_id"] is None
    assert facts["classes"] == {"a": 11, "b": 11}
    assert facts["splits"] == {"train": 15, "test": 6}
    assert facts["ignored"] == {"count": 2, "names": ["Thumbs.db", "a/readme.txt"]}
    row = files["a/3.jpg"]
    digest = hashlib.sha256(jpeg(30)).hexdigest()
    assert (row["image_id"], row["sha256"], row["size_bytes"]) == (digest, digest, len(jpeg(30)))
    assert (row["width"], row["height"], row["format"]) == (40, 32, "JPEG")


def test_the_same_folder_gives_the_same_rows(archive: Archive) -> None:
    put(archive.images, {f"{name}/{i}.jpg": jpeg(i, width=90) for name in "ab" for i in range(5)})
    first, _ = archive.build(tile_above=64, tile_size=32, tile_overlap=0)
    second, _ = archive.build(tile_above=64, tile_size=32, tile_overlap=0)
    assert first == second


def test_a_sealed_catalog_is_not_made_again(archive: Archive) -> None:
    put(archive.images, {"a/1.jpg": jpeg(1)})
    run = archive.open()
    artifact = build_catalog(run)
    (archive.images / "a/1.jpg").unlink()
    assert build_catalog(run) == artifact


def test_no_labels(archive: Archive) -> None:
    put(archive.images, {"a/1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    rows, facts = archive.build(labels="none")
    assert [row["labels"] for row in rows] == [[], []]
    assert {row["split"] for row in rows} == {None}
    assert [row["asset_id"] for row in rows] == [None, "a"]
    assert facts["splits"] == {"train": 0, "test": 0}


@pytest.mark.parametrize(
    ("files", "splits", "note"),
    [
        ({"a/1.jpg": 1}, ["train"], "nothing is held out"),
        ({f"a/{i}.jpg": i for i in range(10)}, ["train"] * 7 + ["test"] * 3, None),
        (
            {"a/1.jpg": 1, **{f"b/{i}.jpg": 10 + i for i in range(10)}},
            ["train"] * 8 + ["test"] * 3,
            "held out of a",
        ),
        ({f"a/bridge/{i}.jpg": i for i in range(5)}, ["train"] * 5, "nothing is held out"),
    ],
    ids=["one image", "one class", "a class with one image", "one group"],
)
def test_small_archives(archive: Archive, files: dict[str, int], splits: list[str], note: str | None) -> None:
    put(archive.images, {name: jpeg(seed) for name, seed in files.items()})
    rows, facts = archive.build()
    assert sorted(row["split"] for row in rows) == sorted(splits)
    assert (note is None and facts["notes"] == []) or note in facts["notes"][0]


def test_all_images_identical(archive: Archive) -> None:
    put(archive.images, {f"a/{i}.jpg": jpeg(1) for i in range(6)})
    rows, facts = archive.build()
    assert [row["status"] for row in rows] == ["ok"] + ["duplicate"] * 5
    assert rows[3]["detail"] == "the same bytes as a/0.jpg"
    assert len({row["group"] for row in rows}) == 1
    assert facts["ledger"]["duplicate"] == 5


def test_equal_bytes_under_two_labels_are_kept_and_reported(archive: Archive) -> None:
    put(archive.images, {f"{name}/{i}.jpg": jpeg(i * 10 + k) for k, name in enumerate("ab") for i in range(4)})
    put(
        archive.images,
        {"a/same.jpg": jpeg(99), "b/same.jpg": jpeg(99), "a+b/same.jpg": jpeg(99), "a/twin.jpg": jpeg(0)},
    )
    rows, facts = archive.build()
    files = by_file(rows)
    conflict = ["a+b/same.jpg", "a/same.jpg", "b/same.jpg"]
    assert [(files[name]["status"], files[name]["split"]) for name in conflict] == [("ok", None)] * 3
    assert facts["label_conflicts"] == {"count": 3, "names": conflict}
    assert files["a/twin.jpg"]["status"] == "duplicate"  # the same bytes under the same label are no contradiction


def test_equal_bytes_of_two_assets_are_two_observations(archive: Archive) -> None:
    put(archive.images, {"d1/pier/1.jpg": jpeg(1), "d1/deck/1.jpg": jpeg(1), "d2/pier/again.jpg": jpeg(1)})
    rows, _ = archive.build(labels="none", deliveries="folder")
    assert [(row["file"], row["status"]) for row in rows] == [
        ("d1/deck/1.jpg", "ok"),
        ("d1/pier/1.jpg", "ok"),
        ("d2/pier/again.jpg", "duplicate"),
    ]
    assert {row["image_id"] for row in rows} == {hashlib.sha256(jpeg(1)).hexdigest()}
    assert len({row["group"] for row in rows}) == 1


def test_equal_bytes_never_straddle_a_split(archive: Archive) -> None:
    files = {f"{name}/{i}.jpg": jpeg(100 * k + i) for k, name in enumerate("ab") for i in range(20)}
    put(
        archive.images,
        files | {f"{name}/pier-{i}/x.jpg": files[f"{name}/{i}.jpg"] for name in "ab" for i in range(20)},
    )
    for split in ("group", "random"):
        rows, _ = archive.build(split=split)
        sides: dict[str, set[str]] = {}
        for row in rows:
            sides.setdefault(row["image_id"], set()).add(row["split"])
        assert all(len(side) == 1 for side in sides.values())


def test_deliveries_accumulate_in_the_order_of_names(archive: Archive) -> None:
    put(
        archive.images,
        {"2026-01/pier/1.jpg": jpeg(1), "2026-02/pier/p2/2.jpg": jpeg(2), "2026-03/3.jpg": jpeg(3)},
    )
    put(archive.images, {"2026-02/log.txt": b"", "2026-03/log.txt": b"", "late.jpg": jpeg(4)})
    rows, facts = archive.build(labels="none", deliveries="folder", delivery="2026-02")
    assert facts["deliveries"] == ["2026-01", "2026-02"]
    assert [(row["delivery"], row["asset_id"], row["inspection_id"]) for row in rows] == [
        ("2026-01", "pier", "2026-01/pier"),
        ("2026-02", "pier/p2", "2026-02/pier/p2"),
        (None, None, None),
    ]
    assert facts["ignored"]["names"] == ["2026-02/log.txt"]
    rows, facts = archive.build(labels="none", deliveries="folder")
    assert facts["deliveries"] == ["2026-01", "2026-02", "2026-03"]
    assert by_file(rows)["2026-03/3.jpg"]["inspection_id"] is None
    message = archive.refused(labels="none", deliveries="folder", delivery="2026-04")
    assert "2026-01, 2026-02, 2026-03" in message
    assert "catalog.deliveries is none" in archive.refused(delivery="2026-02")


def test_large_photos_are_cut_into_tiles(archive: Archive) -> None:
    put(
        archive.images,
        {"a/large.jpg": jpeg(1, 130, 100), "a/small.jpg": jpeg(2, 100, 100), "b/x.jpg": jpeg(3)},
    )
    rows, facts = archive.build(tile_above=100, tile_size=64, tile_overlap=8)
    tiles = [row for row in rows if row["file"] == "a/large.jpg"]
    assert [(t["tile_x"], t["tile_y"]) for t in tiles] == [(x, y) for y in (0, 36) for x in (0, 56, 66)]
    assert {(t["tile_width"], t["tile_height"], t["width"], t["height"]) for t in tiles} == {(64, 64, 130, 100)}
    digest = hashlib.sha256(jpeg(1, 130, 100)).hexdigest()
    assert tiles[1]["image_id"] == f"{digest}-56-0-64-64"
    assert len({t["group"] for t in tiles}) == len({t["split"] for t in tiles}) == 1
    assert by_file(rows)["a/small.jpg"]["tile_x"] is None
    assert (facts["files"], facts["photos_cut"], facts["tiles"]) == (3, 1, 6)
    reader = PhotoReader(str(archive.images))
    cut = reader.read(Source(tiles[4]["file"], tiles[4]["sha256"], tile=Tile(56, 36, 64, 64)))
    assert np.array_equal(cut, reader.read(Source("a/large.jpg"))[36:100, 56:120])


def test_time_and_asset_decide_what_is_delivered_twice(archive: Archive) -> None:
    put(archive.images, {"d1/pier/1.jpg": jpeg(1, taken="2026:01:05 08:00:00")})
    put(archive.images, {"d2/pier/1.jpg": jpeg(1, taken="2026:01:05 08:00:00")})
    put(archive.images, {"d3/pier/1.jpg": jpeg(1, taken="2026:02:05 08:00:00")})
    rows, _ = archive.build(labels="none", deliveries="folder")
    assert [row["status"] for row in rows] == ["ok", "duplicate", "ok"]
    assert rows[0]["captured_at"].isoformat() == "2026-01-05T08:00:00+00:00"


def test_side_car_groups(archive: Archive) -> None:
    put(
        archive.images,
        {f"{name}/{i}.jpg": jpeg(100 * k + i) for k, name in enumerate("ab") for i in range(12)},
    )
    lines = [f"{name}/{i}.jpg,photo-{i % 4}" for name in "ab" for i in range(11)]
    put(archive.images, {"groups.csv": "\n".join(["file,source_photo", *lines, "gone.jpg,g"]).encode()})
    rows, facts = archive.build(groups="groups.csv")
    assert by_file(rows)["a/5.jpg"]["group"] == "photo-1"
    assert by_file(rows)["a/11.jpg"]["group"] == "a/11.jpg"
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert {row["split"] for row in rows} == {"train", "test"}
    assert facts["side_car"] == {
        "named": 22,
        "not_named": 2,
        "without_file": {"count": 1, "names": ["gone.jpg"]},
    }
    elsewhere = (
        put(archive.images.parent, {"lists/g.csv": (archive.images / "groups.csv").read_bytes()}) / "lists/g.csv"
    )
    assert archive.build(groups=str(elsewhere))[0] == rows
    assert archive.build(groups=elsewhere.as_uri())[0] == rows


def test_side_cars_that_cannot_be_used(archive: Archive) -> None:
    put(
        archive.images,
        {"a/1.jpg": jpeg(1), "bad.csv": b"file,x\na/1.jpg,2\n", "latin.csv": b"file,group\n\xe9.jpg,g\n"},
    )
    assert "missing.csv is not there" in archive.refused(groups="missing.csv")
    assert "`file` and `group`" in archive.refused(groups="bad.csv")
    assert "not UTF-8" in archive.refused(groups="latin.csv")


def test_every_bad_file_is_a_row_with_its_reason(archive: Archive) -> None:
    whole = jpeg(1, 200, 160)
    bad = {
        "a/empty.jpg": (b"", "empty"),
        "a/truncated.jpg": (whole[: len(whole) // 2], "truncated"),
        "a/text.jpg": (b"not a picture at all", "not_an_image"),
        "a/page.png": (b"<html>404</html>", "not_an_image"),
        "a/phone.heic": (b"\0\0\0\x18ftypheic", "not_an_image"),
        "a/tiny.jpg": (jpeg(2, 4, 4), "too_small"),
        "a/bomb.jpg": (jpeg(3, 300, 300), "bomb"),
    }
    put(archive.images, {name: data for name, (data, _) in bad.items()})
    put(archive.images, {f"a/{i}.jpg": jpeg(i) for i in range(10, 20)})
    rows, facts = archive.build(max_pixels=40_000)
    files = by_file(rows)
    assert {name: files[name]["reason"] for name in bad} == {name: reason for name, (_, reason) in bad.items()}
    for name, (data, _) in bad.items():
        assert files[name]["sha256"] == hashlib.sha256(data).hexdigest()
        assert files[name]["detail"]
        assert files[name]["labels"] == ["a"]
    assert facts["ledger"]["quarantined"] == len(bad)
    assert sum(row["status"] == "ok" for row in rows) == 10


def test_empty_files_do_not_join_groups(archive: Archive) -> None:
    put(
        archive.images,
        {f"a/pier-{i}/{name}": data for i in range(4) for name, data in (("e.jpg", b""), ("x.jpg", jpeg(i)))},
    )
    rows, _ = archive.build()
    assert len({row["group"] for row in rows}) == 4


def test_what_cannot_be_opened(archive: Archive, tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", {"secret.jpg": jpeg(9), "sub/x.jpg": jpeg(8)})
    put(archive.images, {"a/1.jpg": jpeg(1), "a/2.jpg": jpeg(2), "a/3.jpg": jpeg(3), ".cache/blob": jpeg(4)})
    links = {
        "a/leak.jpg": outside / "secret.jpg",
        "a/sneaky.jpg": Path("../../outside/secret.jpg"),
        "elsewhere": outside,
        "a/dangling.jpg": Path("nothing.jpg"),
        "a/self.jpg": Path("self.jpg"),
        "a/loop": Path(".."),
        "a/again.jpg": Path("1.jpg"),
        "a/annexed.jpg": Path("../.cache/blob"),
        "a/notes.txt": outside / "secret.jpg",
    }
    for name, target in links.items():
        (archive.images / name).symlink_to(target)
    os.mkfifo(archive.images / "a/pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(archive.images)
        try:
            server.bind("a/socket.jpg")
        finally:
            os.chdir("/")
        rows, facts = archive.build(max_quarantined_share=0.9)
    files = by_file(rows)
    assert {name: row["reason"] for name, row in files.items() if row["reason"]} == {
        "a/leak.jpg": "link_outside",
        "a/sneaky.jpg": "link_outside",
        "elsewhere": "link_outside",
        "a/dangling.jpg": "unreadable",
        "a/self.jpg": "unreadable",
        "a/pipe.jpg": "unreadable",
        "a/socket.jpg": "unreadable",
    }
    assert files["a/again.jpg"]["status"] == "duplicate" or files["a/1.jpg"]["status"] == "duplicate"
    assert files["a/annexed.jpg"]["status"] == "ok"
    assert {"a/loop/", ".cache/", "a/notes.txt"} == set(facts["ignored"]["names"])
    assert files["a/leak.jpg"]["sha256"] is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_forbidden_files_are_rows(archive: Archive) -> None:
    put(archive.images, {"a/1.jpg": jpeg(1), "a/2.jpg": jpeg(2)})
    (archive.images / "a/2.jpg").chmod(0)
    rows, _ = archive.build()
    assert by_file(rows)["a/2.jpg"]["reason"] == "unreadable"


STRANGE = [
    "a/with space.jpg",
    'a/it\'s "quoted".jpg',
    "a/<script>alert(1)</script>.jpg".replace("</", "<"),
    "a/new\nline.jpg",
    "a/tab\t.jpg",
    "a/Brücke-桥-🌉.jpg",
    "a/100%25 #1?x=1&y=2.jpg",
    "a/semi;colon,comma.jpg",
    "a/-dash.jpg",
    "a/back\\slash.jpg",
]


def test_strange_names(archive: Archive) -> None:
    put(archive.images, {name: jpeg(i) for i, name in enumerate(STRANGE)})
    latin = os.fsencode(archive.images) + b"/a/Br\xfccke.jpg"
    with open(latin, "wb") as stream:
        stream.write(jpeg(77))
    rows, _ = archive.build()
    files = by_file(rows)
    assert set(files) == {name.replace("\\", "\\\\") for name in STRANGE} | {r"a/Br\xfccke.jpg"}
    reader = PhotoReader(str(archive.images))
    for row in rows:
        assert row["status"] == "ok"
        assert row["uri"].isascii()
        assert " " not in row["uri"]
        path = unquote(urlsplit(row["uri"]).path, errors="surrogateescape")
        assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == row["sha256"]
        assert reader.read(Source(row["file"], row["sha256"])).shape == (32, 40, 3)


def test_hidden_and_system_files_are_ignored_and_named(archive: Archive) -> None:
    names = [
        ".DS_Store",
        "a/._1.jpg",
        "a/Thumbs.db",
        "a/1.xml",
        "a/1.json",
        "a/1.dng",
        "noextension",
        "a/1.jpg.bak",
    ]
    put(archive.images, dict.fromkeys(names, b"x"))
    put(archive.images, {"a/1.jpg": jpeg(1), "__MACOSX/a/1.jpg": b"x", ".thumbnails/1.jpg": jpeg(2)})
    rows, facts = archive.build()
    assert [row["file"] for row in rows] == ["a/1.jpg"]
    assert set(facts["ignored"]["names"]) == {*names, "__MACOSX/", ".thumbnails/"}
    assert facts["ignored"]["count"] == 10


def test_a_store_inside_the_image_folder_is_no_image(archive: Archive) -> None:
    put(archive.images, {"a/1.jpg": jpeg(1), "atlas/archives/x/picture.jpg": jpeg(2)})
    archive.store = Store(archive.images / "atlas")
    rows, facts = archive.build()
    assert [row["file"] for row in rows] == ["a/1.jpg"]
    assert facts["ignored"]["names"] == ["atlas/"]
    archive.store = Store(archive.images)
    assert "are the same place" in archive.refused()


def test_folders_without_pictures(archive: Archive, tmp_path: Path) -> None:
    assert "no pictures in" in archive.refused()
    put(archive.images, {"a/readme.txt": b"x"})
    assert "1 other files ignored" in archive.refused()
    assert "is not there" in archive.refused(images=str(tmp_path / "nowhere"))
    assert "is not a folder" in archive.refused(images=str(archive.images / "a/readme.txt"))


def test_too_much_quarantine_stops(archive: Archive) -> None:
    put(archive.images, {"a/1.jpg": jpeg(1), "a/2.jpg": b"", "a/new\nline.jpg": b"text"})
    message = archive.refused()
    assert "2 of 3 files" in message
    assert "empty 1, not_an_image 1" in message
    assert "'a/2.jpg': empty" in message
    rows, _ = archive.build(max_quarantined_share=0.7)
    assert len(rows) == 3
    (archive.images / "a/1.jpg").unlink()
    assert "2 of 2 files" in archive.refused(max_quarantined_share=1.0)


def test_an_unreadable_folder_stops(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    put(archive.images, {"a/1.jpg": jpeg(1)})

    def fail(path: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StoreError, match="cannot be listed") as error:
        build_catalog(archive.open())
    assert error.value.retryable


def test_files_that_vanish_while_they_are_read(archive: Archive) -> None:
    put(archive.images, {f"a/{i}.jpg": jpeg(i) for i in range(4)})

    def remove_one_first(function: Callable[[Any], Any], parts: Any) -> Any:
        (archive.images / "a/2.jpg").unlink()
        yield from map(function, parts)

    run = archive.open()
    build_catalog(run, remove_one_first)
    rows = run.read_table("catalog", "observations.parquet").to_pylist()
    assert [row["reason"] for row in rows] == [None, None, "vanished", None]


@pytest.fixture
def first(archive: Archive) -> Run:
    """The catalog of a published version: a, b and c, and 30 others."""
    from damage_atlas.contracts import Ledger, VersionRecord
    from damage_atlas.store import publish_version

    put(archive.images, {f"d1/{name}.jpg": jpeg(i) for i, name in enumerate(["a", "b", "c", *map(str, range(30))])})
    settings = Settings(catalog=CatalogSpec(labels="none", deliveries="folder"))
    spec = RunSpec(run_id="r1", kind="recluster", archive="x", model="m", images=str(archive.images), settings=settings)
    run = open_run(archive.store, spec)
    assert build_catalog(run).facts["since_previous"] is None
    record = VersionRecord(
        version=1, archive="x", run_id="r1", run_key=run.key, artifacts={}, ledger=Ledger(), clusters=0,
        next_cluster_id=1,
    )  # fmt: skip
    publish_version(archive.store, record)
    return run


def after(first: Run, run_id: str) -> Run:
    return open_run(first.store, first.spec.model_copy(update={"run_id": run_id, "previous_version": 1}))


def test_what_changed_since_the_previous_version(
    archive: Archive, first: Run, caplog: pytest.LogCaptureFixture
) -> None:
    (archive.images / "d1/a.jpg").unlink()
    put(archive.images, {"d1/b.jpg": jpeg(50), "d2/new.jpg": jpeg(51)})
    second = after(first, "r2")
    assert build_catalog(second).facts["since_previous"] == {
        "version": 1,
        "vanished": {"count": 1, "names": ["d1/a.jpg"]},
        "replaced": {"count": 1, "names": ["d1/b.jpg"]},
    }
    changes = second.read_table("catalog", "changes.parquet")
    assert changes.schema.equals(CHANGES)
    assert changes.to_pylist() == [
        {"file": "d1/a.jpg", "change": "vanished"},
        {"file": "d1/b.jpg", "change": "replaced"},
    ]
    assert "since version 1: 1 files vanished: d1/a.jpg" in caplog.text
    assert "1 files replaced: d1/b.jpg" in caplog.text


def test_every_file_that_vanished_is_named(archive: Archive, first: Run) -> None:
    """However many: the log names ten, the artifact's facts a hundred."""
    for file in sorted((archive.images / "d1").iterdir())[1:]:
        file.unlink()
    second = after(first, "r2")
    build_catalog(second)
    assert second.read_table("catalog", "changes.parquet").num_rows == 32


def test_listing_says_how_far_it_is(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    put(archive.images, {f"{n}.jpg": jpeg(n) for n in range(12)})
    with caplog.at_level("INFO"):
        archive.build(labels="none")
    assert "listing: 12 names" in caplog.text


@pytest.mark.parametrize(("bad", "good", "passes"), [(20, 10, False), (20, 20, True), (19, 0, True)])
def test_a_delivery_that_is_broken_is_refused_however_large_the_archive(
    archive: Archive, first: Run, bad: int, good: int, passes: bool
) -> None:
    put(archive.images, {f"d2/{i}.jpg": b"broken" for i in range(bad)})
    put(archive.images, {f"d2/good-{i}.jpg": jpeg(100 + i) for i in range(good)})
    for run_id in ("r2", "r3"):  # a second try knows the files already
        if passes:
            assert build_catalog(after(first, run_id)).facts["ledger"]["quarantined"] == bad
        else:
            with pytest.raises(InputError, match=f"{bad} of {bad + good} files that came or changed since"):
                build_catalog(after(first, run_id))


def test_the_tiles_of_a_photo_do_not_outweigh_broken_files(archive: Archive, first: Run) -> None:
    put(archive.images, {f"d2/{i}.jpg": b"broken" for i in range(20)})
    put(archive.images, {"d2/large.jpg": jpeg(100, 400, 400)})
    run = after(first, "r2")
    catalog = CatalogSpec(labels="none", deliveries="folder", tile_above=100, tile_size=64)
    spec = run.spec.model_copy(update={"run_id": "r3", "settings": Settings(catalog=catalog)})
    with pytest.raises(InputError, match="20 of 21 files that came or changed since version 1"):
        build_catalog(open_run(first.store, spec))


def test_a_delivery_that_is_sent_again_broken_is_refused(archive: Archive, first: Run) -> None:
    put(archive.images, {f"d1/{i}.jpg": b"broken" for i in range(20)})
    put(archive.images, {f"d0/{i}.jpg": jpeg(200 + i) for i in range(15)})
    with pytest.raises(InputError, match="20 of 35 files that came or changed since version 1"):
        build_catalog(after(first, "r2"))


def test_a_bucket_gives_the_rows_of_a_folder(archive: Archive, s3_bucket: str) -> None:
    files = {f"a/{i}.jpg": jpeg(i) for i in range(3)} | {name: jpeg(60 + i) for i, name in enumerate(STRANGE[:7])}
    files |= {"b/bad.jpg": b"text", "b/empty.jpg": b"", "groups.csv": b"file,group\na/0.jpg,g\na/1.jpg,g\n"}
    put(archive.images, files)
    root = f"s3://{s3_bucket}/inspections"
    bucket = Store(root)
    for name, data in files.items():
        bucket.create(name, data)
    from_folder, folder_facts = archive.build(groups="groups.csv")
    from_bucket, bucket_facts = archive.build(images=root, groups="groups.csv")
    assert bucket_facts == folder_facts
    assert [row | {"uri": None} for row in from_bucket] == [row | {"uri": None} for row in from_folder]
    assert by_file(from_bucket)["a/0.jpg"]["uri"] == f"{root}/a/0.jpg"
    assert np.array_equal(
        PhotoReader(root).read(Source("a/with space.jpg")),
        PhotoReader(str(archive.images)).read(Source("a/with space.jpg")),
    )
    archive.store = Store(f"{root}/store")
    assert len(archive.build(images=root)[0]) == len(from_folder)
    with pytest.raises(AtlasError, match="bucket"):
        build_catalog(archive.open(images=f"s3://{s3_bucket}-missing/x"))

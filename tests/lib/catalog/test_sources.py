"""Tar files, videos and manifests on real files; and that what is known and unchanged is not read again."""

from __future__ import annotations

import errno
import io
import os
import re
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from damage_atlas.catalog import check
from damage_atlas.decoding.video import _Decoder
from damage_atlas.errors import ContractError
from damage_atlas.images import PhotoReader, Source, decode
from tests.support.image_archive import Archive, by_file, jpeg, put

Members = list[tuple[tarfile.TarInfo | str, bytes]]


def make_tar(members: Members) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for info, data in members:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def make_video(
    path: Path, seconds: float = 4, rate: int = 5, codec: str = "mpeg4", step: float = 4, start_s: int = 0,
    **metadata: str,
) -> None:  # fmt: skip
    """Grey frames that grow brighter by ``step`` values each, so that a frame tells its number."""
    side = 64
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata)
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = side
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for number in range(round(seconds * rate)):
            frame = av.VideoFrame.from_ndarray(
                np.full((side, side, 3), round(20 + step * number), np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = start_s * rate + number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# Tar files


def test_members_of_a_tar_file_are_observations(archive: Archive) -> None:
    data = {f"{n:04d}.jpg": jpeg(n) for n in range(5)}
    put(archive.images, {"2026/shard-0.tar": make_tar([*data.items(), ("readme.txt", b"x")]), "2026/b.jpg": jpeg(9)})
    rows, facts = archive.build(deliveries="folder", labels="none")
    assert [row["file"] for row in rows] == ["2026/b.jpg", *(f"2026/shard-0.tar/{name}" for name in data)]
    assert facts["files"] == 2 and {row["delivery"] for row in rows} == {"2026"}
    member = rows[1]
    assert (member["container"], member["size_bytes"]) == ("2026/shard-0.tar", len(data["0000.jpg"]))
    assert member["uri"].endswith("/2026/shard-0.tar#0000.jpg")
    with PhotoReader(str(archive.images)) as reader:
        for row in reversed(rows[1:]):
            pixels = reader.read(Source.of_row(row))
            assert np.array_equal(pixels, decode(data[row["file"].rpartition("/")[2]]))


def test_folders_inside_a_tar_file_are_read_as_if_it_were_not_there(archive: Archive) -> None:
    put(archive.images, {"2026/s.tar": make_tar([("crack/pier-3/a.jpg", jpeg())])})
    rows, _ = archive.build(deliveries="folder")
    assert (rows[0]["delivery"], rows[0]["labels"], rows[0]["asset_id"]) == ("2026", ["crack"], "pier-3")


def test_notes_beside_a_member_are_read(archive: Archive) -> None:
    note = (
        b'{"label": "crack+rust", "asset_id": "pier 7", "position_m": 12.5, "captured_at": "2026-03-01T10:00:00+01:00"}'
    )
    members: Members = [("a.json", note), ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), ("b.cls", b"sound\n")]
    members += [("c.jpg", jpeg(3)), ("c.json", b"{not json"), ("d.jpg", jpeg(4)), ("d.json", b'{"position_m": "far"}')]
    put(archive.images, {"s.tar": make_tar(members)})
    rows = by_file(archive.build(labels="none")[0])
    first = rows["s.tar/a.jpg"]
    assert (first["labels"], first["asset_id"], first["position_m"]) == (["crack", "rust"], "pier 7", 12.5)
    assert first["captured_at"] == datetime(2026, 3, 1, 9, tzinfo=UTC)
    assert rows["s.tar/b.jpg"]["labels"] == ["sound"]
    assert "c.json is not read" in rows["s.tar/c.jpg"]["detail"] and rows["s.tar/c.jpg"]["status"] == "ok"
    assert "position_m 'far'" in rows["s.tar/d.jpg"]["detail"]


def test_hostile_members_are_refused_by_name(archive: Archive, tmp_path: Path) -> None:
    secret = put(tmp_path, {"secret.jpg": jpeg(7)}) / "secret.jpg"
    members: Members = [
        ("good.jpg", jpeg(1)),
        ("../../secret.jpg", jpeg(2)),
        ("/etc/absolute.jpg", jpeg(3)),
        (special("link.jpg", tarfile.SYMTYPE, str(secret)), b""),
        (special("hard.jpg", tarfile.LNKTYPE, "good.jpg"), b""),
        (special("device.jpg", tarfile.CHRTYPE), b""),
        ("good.jpg", jpeg(4)),
        ("bad.jpg", b"no picture"),
        ("empty.jpg", b""),
    ]
    put(archive.images, {"s.tar": make_tar(members)})
    rows, facts = archive.build(labels="none", max_quarantined_share=1)
    reasons = {re.sub(r"-\d+$", " (number)", row["file"].removeprefix("s.tar/")): row["reason"] for row in rows}
    assert reasons == {
        "good.jpg": None,
        "good.jpg (number)": "unsafe_member",
        "secret.jpg (number)": "unsafe_member",
        "etc/absolute.jpg (number)": "unsafe_member",
        "link.jpg (number)": "unsafe_member",
        "hard.jpg (number)": "unsafe_member",
        "device.jpg (number)": "unsafe_member",
        "bad.jpg": "not_an_image",
        "empty.jpg": "empty",
    }
    assert facts["ledger"]["quarantined"] == 8


@pytest.mark.parametrize("damage", ["header", "hole", "appended", "tail", "noise", "empty", "no pictures"])
def test_a_damaged_tar_file_is_a_row_beside_its_readable_members(archive: Archive, damage: str) -> None:
    whole = bytearray(make_tar([(f"{n}.jpg", jpeg(n, 160, 128)) for n in range(4)]))
    third = whole.find(b"2.jpg")
    if damage == "header":
        whole[third : third + 200] = os.urandom(200)
    data = {
        "header": bytes(whole),
        "hole": bytes(whole[: third - third % 512]) + bytes(512) + bytes(whole[third - third % 512 + 512 :]),
        "appended": make_tar([(f"{n}.jpg", jpeg(n, 160, 128)) for n in range(2)]) + bytes(whole),
        "tail": bytes(whole[: third + 700]),
        "noise": os.urandom(4096),
        "empty": b"",
        "no pictures": make_tar([("readme.txt", b"x")]),
    }[damage]
    put(archive.images, {"s.tar": data, "a.jpg": jpeg(9), "b.jpg": jpeg(8)})
    rows = by_file(archive.build(labels="none", max_quarantined_share=1)[0])
    members = sorted(name for name in rows if name.startswith("s.tar/"))
    if damage == "tail":
        assert members[:2] == ["s.tar/0.jpg", "s.tar/1.jpg"] and len(members) == 3
        assert rows[members[2]]["reason"] == "truncated" and members[2].startswith("s.tar/2.jpg")
        return
    assert members == (["s.tar/0.jpg", "s.tar/1.jpg"] if damage in ("header", "hole", "appended") else [])
    assert rows["s.tar"]["reason"] == ("empty" if damage in ("empty", "no pictures") else "corrupt")
    assert rows["s.tar"]["detail"]


def test_a_tar_file_of_the_current_folder_is_read_like_any(archive: Archive) -> None:
    put(archive.images, {"s.tar": make_tar([("./crack/a.jpg", jpeg(1)), ("crack/a.jpg", jpeg(2))])})
    rows, _ = archive.build(max_quarantined_share=1)
    assert (rows[0]["file"], rows[0]["labels"]) == ("s.tar/crack/a.jpg", ["crack"])
    assert rows[1]["reason"] == "unsafe_member", "the same name in other words"


@pytest.mark.parametrize("note", [b"[" * 200_000, b'{"label": "\\ud800"}', b"\xff\xfe", b"7", b"{" * 1000])
def test_a_hostile_note_costs_nothing(archive: Archive, note: bytes) -> None:
    put(archive.images, {"s.tar": make_tar([("a.jpg", jpeg(1)), ("a.json", note)])})
    rows, _ = archive.build(labels="none")
    assert rows[0]["status"] == "ok" and "a.json is not read" in rows[0]["detail"]


def test_a_thousand_long_names_in_a_row_end_in_a_row(archive: Archive) -> None:
    header = make_tar([(special("x", tarfile.GNUTYPE_LONGNAME), b"y\0")])[:1024]
    put(archive.images, {"s.tar": header * 1500, "a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    assert by_file(archive.build(labels="none")[0])["s.tar"]["reason"] == "corrupt"


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_says_it_is_huge_is_not_read(archive: Archive, kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 64 << 20
    member = make_tar([("a.jpg", jpeg(1))])[: 512 + -(-len(jpeg(1)) // 512) * 512]
    data = member + header.tobuf() + b"x" * (64 << 20)
    put(archive.images, {"s.tar": data, "b.jpg": jpeg(2), "c.jpg": jpeg(3)})
    rows = by_file(archive.build(labels="none")[0])
    assert rows["s.tar/a.jpg"]["reason"] is None
    assert rows["s.tar"]["reason"] == "corrupt" and "header of 67,108,864 bytes" in rows["s.tar"]["detail"]


# Videos


class Packets:
    """A container whose first packets fail; the stream's frames come from the others."""

    def __init__(self, container: Any, name: Path, errors: list[Exception]) -> None:
        self.container, self.name, self.errors = container, str(name), errors

    def demux(self, stream: Any) -> Iterator[Any]:
        for packet in self.container.demux(stream):
            if self.errors:
                raise self.errors.pop(0)
            yield packet


FFMPEG_SAYS = [
    av.error.PatchWelcomeError(1, "not implemented"),
    av.error.UnknownError(1, "unknown"),
    # Of damaged containers it says so, too: what counts is whether the file can be read.
    av.error.OSError(errno.EIO, "Input/output error"),
    av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", FFMPEG_SAYS)
def test_what_ffmpeg_cannot_do_is_a_damaged_packet(tmp_path: Path, error: Exception) -> None:
    make_video(tmp_path / "crawl.mp4", seconds=2, rate=5)
    with av.open(str(tmp_path / "crawl.mp4")) as container:
        packets = Packets(container, tmp_path / "crawl.mp4", [error, error])
        decoder = _Decoder(packets, container.streams.video[0])
        assert len(list(decoder)) > 0 and decoder.damaged >= 2


def test_a_disk_that_fails_below_a_video_is_not_its_fault(tmp_path: Path) -> None:
    make_video(tmp_path / "crawl.mp4", seconds=2, rate=5)
    with av.open(str(tmp_path / "crawl.mp4")) as container:
        packets = Packets(container, tmp_path / "gone.mp4", [av.error.OSError(errno.EIO, "Input/output error")])
        with pytest.raises(av.error.OSError):
            list(_Decoder(packets, container.streams.video[0]))


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_damaged_videos_are_rows_whatever_ffmpeg_says(archive: Archive, suffix: str) -> None:
    """Of such files FFmpeg says "input/output error", "no memory", "not implemented" and more."""
    make_video(archive.images / f"whole.{suffix}", seconds=2, rate=5)
    whole = (archive.images / f"whole.{suffix}").read_bytes()
    draw = np.random.default_rng(0)
    for number in range(150):
        data = bytearray(whole)
        for at in draw.integers(0, 600 if number % 2 else len(data), 6):
            data[at] ^= 1 << int(draw.integers(8))
        path = archive.images / "damaged" / f"{number:03d}.{suffix}"
        put(archive.images, {str(path.relative_to(archive.images)): bytes(data)})
    rows, _ = archive.build(labels="none", max_quarantined_share=1)
    assert {row["container"] or row["file"] for row in rows} == {
        f"whole.{suffix}",
        *(f"damaged/{number:03d}.{suffix}" for number in range(150)),
    }
    assert any(row["status"] == "quarantined" for row in rows)


def test_frames_of_a_video_are_observations_with_their_second(archive: Archive) -> None:
    make_video(archive.images / "crawl.mp4", seconds=4, rate=5, creation_time="2026-03-01T10:00:00Z")
    rows, facts = archive.build(labels="none", video_every_s=1.0)
    assert [row["frame_time_s"] for row in rows] == [0, 1, 2, 3]
    assert facts["ledger"]["ok"] == 4 and facts["files"] == 1
    assert {row["format"] for row in rows} == {"MPEG4"} and {row["width"] for row in rows} == {64}
    assert rows[2]["uri"].endswith("/crawl.mp4#t=2") and rows[2]["file"] == "crawl.mp4"
    assert len({row["image_id"] for row in rows}) == 4
    assert rows[2]["captured_at"] - rows[0]["captured_at"] == timedelta(seconds=2)
    with PhotoReader(str(archive.images)) as reader:
        for row in [rows[0], rows[2], rows[3], rows[1]]:  # onwards, and back
            shade = int(np.median(reader.read(Source.of_row(row))))
            assert abs(shade - (20 + 4 * 5 * row["frame_time_s"])) <= 4, row["frame_time_s"]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("ts", "mpeg2video"),
        ("ts", "libx264"),
        ("mpg", "mpeg2video"),
        ("avi", "mpeg4"),
        ("mp4", "libx264"),
        ("mkv", "libx264"),
    ],
)
def test_every_frame_is_found_again_from_anywhere(archive: Archive, suffix: str, codec: str) -> None:
    """Containers differ in how well they know where key frames are, and streams in how far frames are reordered."""
    make_video(archive.images / f"crawl.{suffix}", seconds=12, rate=25, codec=codec, step=0.7)
    rows, _ = archive.build(labels="none", video_every_s=1.0)
    assert len(rows) == 12
    for row in rows:
        with PhotoReader(str(archive.images)) as reader:
            shade = float(np.median(reader.read(Source.of_row(row))))
        assert abs(shade - (20 + 0.7 * 25 * (row["frame_time_s"] - rows[0]["frame_time_s"]))) <= 6, row["frame_time_s"]


def test_frames_closer_than_a_second_are_as_many_as_asked(archive: Archive) -> None:
    make_video(archive.images / "crawl.mp4", seconds=4, rate=30, step=1)
    assert len(archive.build(labels="none", video_every_s=0.1)[0]) == 40


def test_scene_changes_choose_frames(archive: Archive) -> None:
    make_video(archive.images / "crawl.mp4", seconds=8, rate=5)  # 0.0157 of the grey scale a frame
    rows, _ = archive.build(labels="none", video_every_s=0.1, video_scene_change=0.1)
    times = [row["frame_time_s"] for row in rows]
    assert times[0] == 0 and 4 <= len(times) <= 7
    assert all(1.2 <= later - earlier <= 1.8 for earlier, later in zip(times, times[1:], strict=False))


def test_a_side_car_gives_the_chainage(archive: Archive) -> None:
    make_video(archive.images / "crawl.mp4")
    put(archive.images, {"crawl.csv": b"time_s,position_m,element\n1,10,joint 4\n3,14,joint 5\n"})
    rows, _ = archive.build(labels="none")
    assert [row["position_m"] for row in rows] == [None, 10, 12, 14]
    assert [row["element"] for row in rows] == [None, "joint 4", "joint 4", "joint 5"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x,y\n1,2\n",
        "time_s,position_m\n3,1\n1,2\n",
        "time_s,position_m\n1,far\n",
        "time_s,position_m\n-inf,1\n",
        f"time_s,element\n1,{'x' * 200_000}\n",
    ],
)
def test_a_side_car_that_cannot_be_read_costs_no_frame(archive: Archive, text: str) -> None:
    make_video(archive.images / "crawl.mp4")
    put(archive.images, {"crawl.csv": text.encode()})
    rows, _ = archive.build(labels="none")
    assert len(rows) == 4 and all("crawl.csv is not read" in row["detail"] for row in rows)


def test_a_side_car_that_was_corrected_is_read_again(archive: Archive) -> None:
    make_video(archive.images / "crawl.mp4")
    put(archive.images, {"crawl.csv": b"time_s,position_m\n0,0\n"})
    assert archive.build(labels="none")[0][1]["position_m"] == 0
    put(archive.images, {"crawl.csv": b"time_s,position_m\n0,100.5\n"})
    assert archive.build(labels="none")[0][1]["position_m"] == 100.5


def test_damaged_videos_are_rows(archive: Archive) -> None:
    make_video(archive.images / "good.mp4")
    whole = (archive.images / "good.mp4").read_bytes()
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    concat = b"ffconcat version 1.0\nfile /etc/passwd\n"
    broken = {"cut.mp4": whole[: len(whole) // 3], "noise.avi": os.urandom(5000), "empty.mkv": b""}
    put(archive.images, broken | {"playlist.mp4": playlist, "concat.mov": concat})
    rows, _ = archive.build(labels="none", max_quarantined_share=1)
    assert {row["file"] for row in rows} == {*broken, "good.mp4", "playlist.mp4", "concat.mov"}
    assert all((row["status"] == "ok") == (row["file"] == "good.mp4") for row in rows)


@pytest.mark.parametrize("suffix", ["mpg", "ts"])
def test_of_joined_recordings_the_first_is_read_and_the_rest_is_a_row(archive: Archive, suffix: str) -> None:
    """Both have the same timestamps, by which frames are named."""
    make_video(archive.images / f"one.{suffix}", seconds=4, codec="mpeg2video", rate=25, step=2)
    whole = (archive.images / f"one.{suffix}").read_bytes()
    (archive.images / f"one.{suffix}").unlink()
    put(archive.images, {f"joined.{suffix}": whole + whole})
    rows, _ = archive.build(labels="none", video_every_s=1.0, max_quarantined_share=1)
    again, _ = archive.build(labels="none", video_every_s=1.0, max_quarantined_share=1)
    assert [row["observation_id"] for row in again] == [row["observation_id"] for row in rows]
    read = [row for row in rows if row["status"] == "ok"]
    (left,) = [row for row in rows if row["status"] == "quarantined"]
    assert [round(row["frame_time_s"]) for row in read] == [0, 1, 2, 3]
    assert left["reason"] == "corrupt" and "its time begins again" in left["detail"]


@pytest.mark.parametrize(("overlap_s", "rows_of_loss"), [(2, 0), (8, 1)])
def test_segments_that_overlap_go_on_where_time_does(archive: Archive, overlap_s: int, rows_of_loss: int) -> None:
    """The clock of a camera was set, or segments share some seconds: what comes after is read."""
    for name, start_s in (("one", 0), ("two", 10 - overlap_s)):
        make_video(archive.images / f"{name}.ts", seconds=10, codec="mpeg2video", rate=25, step=0.5, start_s=start_s)
    parts = [(archive.images / f"{name}.ts").read_bytes() for name in ("one", "two")]
    for name in ("one", "two"):
        (archive.images / f"{name}.ts").unlink()
    put(archive.images, {"joined.ts": b"".join(parts)})
    rows, _ = archive.build(labels="none", video_every_s=1.0, max_quarantined_share=1)
    read = [round(row["frame_time_s"]) for row in rows if row["status"] == "ok"]
    assert read == list(range(20 - overlap_s)), read
    assert len(rows) - len(read) == rows_of_loss


def test_a_video_that_was_replaced_is_not_read_as_the_old_one(archive: Archive) -> None:
    make_video(archive.images / "crawl.mp4")
    rows, _ = archive.build(labels="none")
    make_video(archive.images / "crawl.mp4", seconds=2)
    with PhotoReader(str(archive.images)) as reader, pytest.raises(Exception, match="changed"):
        reader.read(Source.of_row(rows[0]))


# Manifests


def test_a_manifest_chooses_files_and_says_what_they_show(archive: Archive) -> None:
    lines = ["file,label,asset_id,position_m,other", "0.jpg,crack,pier 1,3.5,?", "s.tar/y.jpg,rust,,,", "gone.jpg,x,,,"]
    lines += ["s.tar/gone.jpg,x,,,", "folder.tar/z.jpg,mould,,,", "T.TAR/w.jpg,x,,,"]
    shards = {"s.tar": make_tar([("x.jpg", jpeg(7)), ("y.jpg", jpeg(8))]), "T.TAR": make_tar([("w.jpg", jpeg(12))])}
    put(archive.images, {f"{n}.jpg": jpeg(n) for n in range(3)} | shards)
    put(archive.images, {"folder.tar/z.jpg": jpeg(11), "list.csv": "\n".join(lines).encode()})
    rows = by_file(archive.build(manifest="list.csv")[0])
    assert {name: row["reason"] for name, row in rows.items()} == {
        "0.jpg": None,
        "s.tar/y.jpg": None,
        "folder.tar/z.jpg": None,
        "T.TAR/w.jpg": None,
        "gone.jpg": "vanished",
        "s.tar/gone.jpg": "vanished",
    }
    assert (rows["0.jpg"]["labels"], rows["0.jpg"]["asset_id"], rows["0.jpg"]["position_m"]) == (
        ["crack"],
        "pier 1",
        3.5,
    )
    assert rows["s.tar/y.jpg"]["labels"] == ["rust"]
    assert rows["gone.jpg"]["reason"] == "vanished" and "manifest" in rows["gone.jpg"]["detail"]


def test_a_manifest_names_files_by_whatever_name_they_have(archive: Archive) -> None:
    lines = ["file,label", "scan 1,crack", "x.img,rust", "not a picture.img,x", "a link,x", "a pipe,x"]
    files = {"scan 1": jpeg(1), "x.img": jpeg(2), "not a picture.img": b"text", "y.img": jpeg(3), "z.jpg": jpeg(4)}
    put(archive.images, files | {"list.csv": "\n".join(lines).encode()})
    (archive.images / "a link").symlink_to("/etc/hostname")
    os.mkfifo(archive.images / "a pipe")
    rows = by_file(archive.build(manifest="list.csv", max_quarantined_share=1)[0])
    assert {name: row["reason"] for name, row in rows.items()} == {
        "scan 1": None,
        "x.img": None,
        "not a picture.img": "not_an_image",
        "a link": "link_outside",
        "a pipe": "unreadable",
    }


def test_a_manifest_may_be_parquet(archive: Archive) -> None:
    put(archive.images, {"0.jpg": jpeg(0), "1.jpg": jpeg(1)})
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    table = pa.table({"file": ["1.jpg"], "labels": [["b", "a"]], "captured_at": [moment], "latitude": [1.5]})
    pq.write_table(table, archive.images / "list.parquet")
    rows, _ = archive.build(manifest="list.parquet")
    assert [(r["file"], r["labels"], r["captured_at"], r["latitude"]) for r in rows] == [
        ("1.jpg", ["a", "b"], moment, 1.5)
    ]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("list.csv", b"name,label\na.jpg,x\n", "column `file`"),
        ("list.csv", b"", "names no files"),
        ("list.csv", b"file\na.jpg\na.jpg\n", "row 2: 'a.jpg' is named twice"),
        ("list.csv", b"file,position_m\na.jpg,near\n", "row 1 (a.jpg): position_m 'near' cannot be understood"),
        ("list.csv", b"file\nelsewhere.jpg\n", "none of its 1 files is in the image folder"),
        ("list.csv", b"\xff\xfe", "not UTF-8"),
        ("list.parquet", b"PAR1 no", "not a Parquet table"),
        (None, b"", "is not there"),
    ],
)
def test_a_manifest_that_is_none_stops(archive: Archive, name: str | None, data: bytes, said: str) -> None:
    put(archive.images, {"a.jpg": jpeg()} | ({name: data} if name else {}))
    assert said in archive.refused(manifest=name or "lost.csv")


# What is known already


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the listed files that were read, in order."""
    names: list[str] = []
    original = check.CheckFiles._check

    def noted(self: Any, images: Any, listed: Any) -> Any:
        names.append(listed.file)
        return original(self, images, listed)

    monkeypatch.setattr(check.CheckFiles, "_check", noted)
    return names


def test_only_new_and_changed_files_are_read(archive: Archive, read: list[str]) -> None:
    put(archive.images, {f"{n:03d}.jpg": jpeg(n) for n in range(40)} | {"s.tar": make_tar([("x.jpg", jpeg(77))])})
    make_video(archive.images / "v.mp4")
    first, facts = archive.build(labels="none")
    assert len(read) == 42 == facts["files_read"]
    read.clear()
    again, facts = archive.build(labels="none")
    assert read == [] and again == first and facts["files_known"] == 42
    put(archive.images, {"007.jpg": jpeg(200), "new.jpg": jpeg(201)})
    (archive.images / "008.jpg").unlink()
    rows, facts = archive.build(labels="none")
    assert sorted(read) == ["007.jpg", "new.jpg"] and facts["files_read"] == 2
    assert by_file(rows)["007.jpg"]["sha256"] != by_file(first)["007.jpg"]["sha256"] and "008.jpg" not in by_file(rows)


def test_what_cannot_be_used_is_tried_again_when_it_changes_or_when_asked(archive: Archive, read: list[str]) -> None:
    put(archive.images, {"a.jpg": jpeg(), "bad.jpg": b"no picture"})
    archive.build(labels="none")
    read.clear()
    assert by_file(archive.build(labels="none")[0])["bad.jpg"]["reason"] == "not_an_image" and read == []
    archive.build(labels="none", retry_quarantined=True)
    assert read == ["bad.jpg"]
    put(archive.images, {"bad.jpg": jpeg(3)})
    assert by_file(archive.build(labels="none")[0])["bad.jpg"]["status"] == "ok"


def test_a_file_that_could_not_be_opened_is_tried_each_time(archive: Archive, read: list[str]) -> None:
    put(archive.images, {"a.jpg": jpeg()})
    (archive.images / "loop.jpg").symlink_to("loop.jpg")
    archive.build(labels="none")
    read.clear()
    archive.build(labels="none")
    assert read == ["loop.jpg"]


def test_other_limits_judge_anew(archive: Archive, read: list[str]) -> None:
    put(archive.images, {"a.jpg": jpeg(), "b.jpg": jpeg(1, 400, 320)})
    archive.build(labels="none")
    read.clear()
    rows, _ = archive.build(labels="none", min_side=100)
    assert len(read) == 2 and by_file(rows)["a.jpg"]["reason"] == "too_small"


def test_a_damaged_part_of_what_is_known_says_what_to_do(archive: Archive) -> None:
    put(archive.images, {"a.jpg": jpeg()})
    archive.build(labels="none")
    (part,) = archive.store.list("archives/bridge/files")
    path = archive.store.folder / part.key  # type: ignore[operator]
    path.write_bytes(path.read_bytes()[:-40] + os.urandom(40))
    with pytest.raises(ContractError, match="is damaged: .* delete it"):
        archive.build(labels="none")
    path.unlink()
    archive.build(labels="none")

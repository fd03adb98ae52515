"""A user's mistake ends in one line that says what to do, with the exit code of DESIGN; never in a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from damage_atlas.cli import _table, main
from damage_atlas.contracts import Ledger, VersionRecord
from damage_atlas.query import published as query_published
from damage_atlas.query import published_run
from damage_atlas.store import Store, publish_version, resolve_model
from tests.lib.report.synthetic_run import Scene, make_run
from tests.support.small_archive import make_labelled


@pytest.fixture
def atlas(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["damage-atlas", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
            raise SystemExit(0)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_labelled(tmp_path / "images", each=6)


def test_help_names_the_commands(atlas) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = atlas("--help")
    assert code == 0 and "recluster" in out and "rollback" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "{tmp}/none"], "none"),
        (["--images", "{tmp}/empty"], "empty"),
        (["--images", "{images}/across"], "at least two classes"),
        (["--images", "{images}", "--set", "train.temprature=1"], "Did you mean train.temperature"),
        (["--images", "{images}", "--set", "train.iterations"], "expected key=value"),
        (["--images", "{images}", "--spec", "{tmp}/none.yaml"], "cannot be read"),
        (["--images", "{images}", "--archive", "a/b"], "is not a name"),
        (["--images", "{images}", "--groups", "{tmp}/none.csv"], "none.csv"),
        (["--images", "{images}", "--groups", "{tmp}/empty"], "is a folder"),
        (["--images", "{images}", "--groups", "{tmp}/pipe"], "not a regular file"),
        (["--images", ""], "empty address"),
        (["--images", "{images}", "--archive", "../x"], "is not a name"),
        (["--images", "{images}", "--set", "train.iterations=["], "not valid YAML"),
        (["--images", "{images}", "--set", "train.iterations=2020-13-45"], "not valid YAML"),
        (["--images", "{images}", "--set", "train.seed=-1"], "train.seed"),
        (["--images", "{images}", "--set", "cluster.eps=.nan"], "cluster.eps"),
        (["--images", "{images}", "--set", "train.learning_rate=.inf"], "train.learning_rate"),
        (["--images", "{images}", "--set", "train.input_size=1000000"], "train.input_size"),
        (["--images", "{images}", "--spec", "{images}/across/000.png"], "not a text file"),
    ],
)
def test_mistakes_in_run(atlas, images: Path, tmp_path: Path, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    filled = [a.format(tmp=tmp_path, images=images) for a in arguments]
    code, _, err = atlas("run", "--store", tmp_path / "store", *filled)
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("damage-atlas: ") and message in last, err
    assert "Traceback" not in err


def test_a_store_that_cannot_be_written(atlas, images: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("in the way")
    code, _, err = atlas("run", "--images", images, "--store", tmp_path / "file" / "store")
    assert code == 1 and "cannot be written" in err and "Traceback" not in err


def test_a_model_that_is_not_there(atlas, images: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = atlas(
        "recluster", "--images", images, "--store", tmp_path / "s", "--archive", "a", "--model", "none"
    )
    assert code == 2 and "no promoted version" in err


@pytest.mark.parametrize("command", ["history", "verify", "search", "duplicates"])
def test_archives_without_a_version(atlas, tmp_path: Path, command: str) -> None:  # type: ignore[no-untyped-def]
    extra = [str(tmp_path / "x.jpg")] if command == "search" else []
    code, out, err = atlas(command, *extra, "--store", tmp_path, "--archive", "none")
    assert (code, "no published version" in out + err) == ((0 if command == "history" else 2), True)


def test_addresses_that_are_no_run(atlas, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for command in ("show", "embed", "failed"):
        code, _, err = atlas(command, tmp_path / "nothing")
        assert code == 2 and err.startswith("damage-atlas: ")


def test_settings_changed_under_a_run(atlas, images: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    common = ["run", "--images", images, "--store", tmp_path / "s", "--run-id", "r", "--set", "train.input_size=32"]
    small = ["--set", "train.batch_size=6", "--set", "train.iterations=2"]
    code, out, _ = atlas(*common, *small, "--json")
    assert code == 0 and json.loads(out)["counts"]["embedded"] == 18
    code, _, err = atlas(*common, *small[:2], "--set", "train.iterations=3")
    assert code == 2 and "other settings (settings.train.iterations)" in err
    code, out, _ = atlas("verify", "--store", tmp_path / "s", "--archive", "images")
    assert code == 0 and "every digest matches" in out


def test_check_names_misspelt_keys(atlas, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "north.yaml"
    file.write_text("archive: north\nimages: /i\nmodel: m\nshedule: '0 2 * * *'\n")
    code, _, err = atlas("check", file)
    assert code == 2 and "shedule is not a setting. Did you mean schedule?" in err


def test_a_run_refused_for_its_images_is_not_continued(atlas, images: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Following the advice of the error must help."""
    lone = tmp_path / "lone"
    shutil.copytree(images / "across", lone / "across")
    small = ["--set", "train.input_size=32", "--set", "train.batch_size=6", "--set", "train.iterations=2"]
    command = ["run", "--images", lone, "--store", tmp_path / "s", *small]
    code, _, err = atlas(*command)
    assert code == 2 and "at least two classes" in err
    shutil.copytree(images / "down", lone / "down")
    code, out, err = atlas(*command)
    assert code == 0 and "12 listed = 12 embedded" in out, err


@pytest.fixture
def published(atlas, images: Path, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    small = ["--set", "train.input_size=32", "--set", "train.batch_size=6", "--set", "train.iterations=2"]
    code, _, err = atlas("run", "--images", images, "--store", tmp_path / "s", "--archive", "a", *small)
    assert code == 0, err
    return tmp_path / "s"


@pytest.mark.parametrize(
    "pattern",
    ["archives/a/versions/*.json", "archives/a/runs/*/cluster/artifact.json", "archives/a/runs/*/run.yaml",
     "models/a/promotions/*.json", "models/a/*/model.json"],
)  # fmt: skip
def test_damaged_records_end_in_one_line(atlas, published: Path, images: Path, pattern: str) -> None:  # type: ignore[no-untyped-def]
    (record,) = published.glob(pattern)
    record.write_bytes(b"\xff{" + record.read_bytes()[10:])
    for command in (
        ("verify", "--store", published, "--archive", "a"),
        ("recluster", "--store", published, "--archive", "a", "--images", images, "--model", "a"),
    ):
        code, out, err = atlas(*command)
        assert "Traceback" not in err
        assert code in (0, 1) and (code == 0 or "damaged" in out + err or "was changed" in out + err), (command, err)


def test_vectors_of_another_model_are_mapped(atlas, images: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    files = [str(path.relative_to(images)) for path in sorted(images.rglob("*.png"))]
    vectors = np.random.default_rng(0).normal(size=(len(files), 6)).tolist()
    pq.write_table(pa.table({"file": files, "vector": vectors}), tmp_path / "vectors.parquet")
    asked = ("recluster", "--store", tmp_path / "s", "--archive", "a", "--images", images, "--model", "theirs")
    code, out, err = atlas(*asked, "--vectors", tmp_path / "vectors.parquet", "--json")
    assert code == 0, err
    assert json.loads(out)["counts"]["embedded"] == len(files)
    code, _, err = atlas(*asked, "--vectors", tmp_path / "none.parquet")
    assert code == 2 and "there is no such file" in err


def test_search_with_filters_says_where_images_lie(atlas, published: Path, images: Path) -> None:  # type: ignore[no-untyped-def]
    photo, where = images / "down" / "001.png", ("--store", published, "--archive", "a")
    code, out, err = atlas("search", photo, *where, "-k", 3, "--label", "down", "--json")
    rows = json.loads(out)
    assert code == 0 and {row["label"] for row in rows} == {"down"} and len(rows) == 3, err
    assert rows[0]["uri"].endswith("down/001.png") and rows[0]["similarity"] > 0.999
    assert {"x", "y", "delivery", "tile_x", "position_m", "frame_time_s", "cluster_id"} <= rows[0].keys()
    code, out, _ = atlas("search", rows[0]["image_id"], *where)
    assert code == 0 and "similarity" in out and "where" in out
    code, _, err = atlas("search", photo, *where, "--label", "dwn")
    assert code == 2 and "Did you mean down?" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_index_is_no_reason_not_to_answer(
    atlas,  # type: ignore[no-untyped-def]
    published: Path,
    images: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    asked = ("search", images / "down" / "001.png", "--store", published, "--archive", "a", "-k", 5, "--json")
    code, before, _ = atlas(*asked)
    assert code == 0
    run = published_run(Store(str(published)), "a")
    index = published / run.artifact("index").outputs["index.faiss"].key
    sound = index.read_bytes()
    index.write_bytes(sound[:-1] + b"x") if damage == "changed" else index.unlink()
    query_published._kept.clear()
    for _ in range(2):  # said each time
        caplog.clear()
        code, after, _ = atlas(*asked)
        assert code == 0 and json.loads(after) == json.loads(before)
        assert "the stored vectors are searched" in caplog.text and "index.faiss" in caplog.text
    code, _, _ = atlas("verify", "--store", published, "--archive", "a")
    assert code == 1
    index.write_bytes(sound)
    caplog.clear()
    assert atlas(*asked)[0] == 0 and "the stored vectors" not in caplog.text, "it was put back"


def test_duplicates_are_grouped(atlas, published: Path, images: Path) -> None:  # type: ignore[no-untyped-def]
    where = ("--store", published, "--archive", "a")
    code, out, err = atlas("duplicates", *where, "--threshold", 0.1, "--json")
    groups = json.loads(out)
    assert code == 0 and sum(len(group["places"]) for group in groups) <= 18, err
    assert groups and groups[0]["observations"] >= 2
    code, out, _ = atlas("duplicates", *where, "--threshold", 0.1, "--limit", 1)
    assert code == 0 and "lowest_similarity" in out
    code, _, err = atlas("duplicates", *where, "--threshold", 7)
    assert code == 2 and "a cosine above 0" in err


def test_damaged_vectors_are_not_reused(atlas, published: Path, images: Path) -> None:  # type: ignore[no-untyped-def]
    (part,) = published.glob("archives/a/vectors/*/*.parquet")
    data = bytearray(part.read_bytes())
    data[300] ^= 0xFF
    part.write_bytes(data)
    code, _, err = atlas("recluster", "--store", published, "--archive", "a", "--images", images, "--model", "a")
    assert code == 1 and "is damaged" in err and "delete it" in err


def test_a_model_whose_weights_do_not_fit_its_card(atlas, published: Path, images: Path) -> None:  # type: ignore[no-untyped-def]
    (card,) = published.glob("models/a/*/model.json")
    card.write_text(card.read_text().replace('"input_size": 32', '"input_size": 40'))
    shutil.rmtree(published / "archives" / "a" / "vectors")
    code, _, err = atlas("recluster", "--store", published, "--archive", "b", "--images", images, "--model", "a")
    assert code == 1 and "do not fit its card" in err and "Traceback" not in err


def test_names_that_look_like_markup_are_shown_as_they_are(atlas, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = atlas("history", "--store", tmp_path, "--archive", "[/x]")
    assert code == 2 and "'[/x]' is not a name" in err


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(images: Path, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "damage-atlas"), "run", "--images", str(images), "--store",
        str(tmp_path / "s"), "--set", "train.input_size=32", "--set", "train.batch_size=6", "--set",
        "train.iterations=100000", "--set", "train.checkpoint_every=5",
    ]  # fmt: skip
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that were started in the background of a shell inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        give_up_at = time.monotonic() + 120
        while not list((tmp_path / "s").glob("models/*/*/checkpoints/*.safetensors")):
            assert time.monotonic() < give_up_at and started.poll() is None
            time.sleep(0.1)
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 1 and "stopped. The same command goes on" in err and "Traceback" not in err


def test_names_and_notes_of_a_cluster(atlas, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = make_run(tmp_path / "made", Scene(images=60, clusters=5))
    publish_version(
        run.store,
        VersionRecord(
            version=2, archive="north-bridge", run_id=run.spec.run_id, run_key=run.key, artifacts={}, ledger=Ledger(),
            clusters=5, next_cluster_id=6,
        ),
    )  # fmt: skip
    of = ("--store", run.store.root, "--archive", "north-bridge")
    code, out, _ = atlas("name", 5, "map cracking", "--by", "Ann", *of)
    assert code == 0 and "remark 1 of north-bridge" in out
    code, _, err = atlas("note", 5, "--severity", "severe", *of)
    assert code == 2 and "'severe' is neither a grade from 0 to 5 nor in the archive's code table" in err
    code, out, _ = atlas("note", 5, "ask the owner", "--severity", "4", *of, "--json")
    assert code == 0 and json.loads(out)["severity"] == "4" and json.loads(out)["said_by"]
    code, out, _ = atlas("history", "--cluster", 5, *of)
    assert code == 0 and "cluster 5, map cracking, severity 4" in out and "born" in out and "ask the owner" in out
    code, out, _ = atlas("history", "--cluster", 5, *of, "--json")
    past = json.loads(out)
    assert (past["name"], past["severity"]) == ("map cracking", "4") and past["events"][0]["to_cluster_id"] == 5
    for arguments in (("name", 98, "x"), ("note", 5), ("history", "--cluster", 98)):
        code, _, err = atlas(*arguments, *of)
        assert code == 2 and err.startswith("damage-atlas: ") and err.count("\n") == 1


@pytest.mark.parametrize("console", [Console(), Console(force_terminal=True, no_color=True, width=40)])
def test_tables_are_never_cut(console: Console, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("damage_atlas.cli.console", console)
    row = {
        "version": 7,
        "run_id": "20261128T030209-0123456789abcdef",
        "uri": f"s3://bucket/{'a' * 60}/[b].jpg",
        "no": None,
    }
    _table([row, row], tuple(row))
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    if console.is_terminal:
        assert max(map(len, said.splitlines())) <= console.width
        said = "".join(line.strip() for line in said.splitlines())
    else:
        assert said.count("\n") == 3
    for text in (*row, str(row["run_id"]), str(row["uri"])):
        assert text in said


def test_an_older_model_is_made_current_again(atlas, published: Path, images: Path) -> None:  # type: ignore[no-untyped-def]
    small = ["--set", "train.input_size=32", "--set", "train.batch_size=6", "--set", "train.iterations=3"]
    code, _, err = atlas("run", "--images", images, "--store", published, "--archive", "a", *small)
    assert code == 0, err
    older, newer = sorted(folder.name for folder in (published / "models/a").iterdir() if folder.name != "promotions")
    assert resolve_model(Store(published), "a").version == newer
    code, out, _ = atlas(
        "promote", f"a@{older}", "--store", published, "--because", "the other one sees moss", "--json"
    )
    assert code == 0 and json.loads(out)["reason"] == "the other one sees moss"
    assert resolve_model(Store(published), "a").version == older
    for wrong, why in (("a", "names no version"), ("a@nothing", "a@nothing is not in"), ("b@c", "b@c is not in")):
        code, _, err = atlas("promote", wrong, "--store", published)
        assert code == 2 and why in err


def test_a_data_set_becomes_a_manifest(atlas, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for letter in "DPW":
        for mark in "CU":
            (tmp_path / f"set/{letter}/{mark}{letter}").mkdir(parents=True)
            (tmp_path / f"set/{letter}/{mark}{letter}/7001-1.jpg").write_bytes(b"never opened")
    asked = ("dataset", "sdnet2018", tmp_path / "set", "--out", tmp_path / "m.csv", "--paper")
    code, out, _ = atlas(*asked)
    assert code == 0 and "deck_non_crack" in out and "left out: 2 of walls" in out
    assert f"--set catalog.manifest={tmp_path / 'm.csv'}" in out.replace("\n", "")
    code, out, _ = atlas(*asked, "--json")
    assert code == 0 and json.loads(out)["classes"]["pavement_crack"] == 1
    code, _, err = atlas("dataset", "coco", tmp_path / "set", "--out", tmp_path / "m.csv")
    assert code == 2 and "no file in COCO's format" in err

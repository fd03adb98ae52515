"""A user's mistake ends in one line that says what to do, with the exit code of DESIGN; never in a traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from damage_atlas.cli import main
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
    ],
)
def test_mistakes_in_run(atlas, images: Path, tmp_path: Path, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty").mkdir()
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


@pytest.mark.parametrize("command", ["history", "verify", "search"])
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

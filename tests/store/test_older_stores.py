"""A store that an earlier release wrote: it tells what it told then, and the next version is published on top of it.

`tests/support/older_store.py` writes them, once for each release.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from damage_atlas.cli import main
from damage_atlas.query import published_run
from damage_atlas.store import Store
from tests.architecture.repository import read
from tests.support.older_store import ARCHIVE, FORGOTTEN, LOOKED_FOR, MODEL
from tests.support.small_archive import make_delivery

WRITTEN = {path.name.removesuffix(".tar.xz"): path for path in Path(__file__).with_name("written").iterdir()}
Atlas = Callable[..., Any]


def releases() -> list[str]:
    headings = [line.split()[1] for line in read("CHANGELOG.md").splitlines() if line.startswith("## ")]
    return [heading for heading in headings if heading != "Unreleased"]


@pytest.fixture(params=sorted(WRITTEN))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(WRITTEN[request.param]) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def atlas(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Atlas:
    def call(command: str, *arguments: str, archive: str = ARCHIVE) -> Any:
        of = ("--store", str(folder / "store"), "--archive", archive, "--json")
        monkeypatch.setattr(sys, "argv", ["damage-atlas", command, *arguments, *of])
        with pytest.raises(SystemExit) as ended:
            main()
            raise SystemExit(0)
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return json.loads(said.out)

    return call


def test_every_release_has_left_one() -> None:
    assert sorted(WRITTEN) == sorted(releases())


def test_it_tells_what_it_told(folder: Path, atlas: Atlas) -> None:
    told = json.loads((folder / "told.json").read_text())
    picture = str(folder / "images" / LOOKED_FOR)
    assert atlas("history") == told["history"]
    assert atlas("history", "--cluster", "1") == told["cluster 1"]
    assert atlas("decisions") == told["decisions"]
    found = atlas("search", picture, "-k", "5")
    # Another processor or another library may change the last digits of a similarity.
    assert [row.pop("similarity") for row in found] == pytest.approx(
        [row.pop("similarity") for row in told["search"]], abs=1e-3
    )
    assert found == told["search"]
    # Of the versions before it, what was forgotten is missing.
    assert atlas("verify", "--version", "3") and atlas("verify", archive=MODEL)


def test_the_next_version_is_published_on_top(folder: Path, atlas: Atlas) -> None:
    told = json.loads((folder / "told.json").read_text())
    before = published_run(Store(folder / "store"), ARCHIVE)
    make_delivery(folder / "images", "2026-03", 20, each=4, side=48)
    settings = folder / "settings.yaml"
    settings.write_text(before.spec.settings.model_dump_json())
    atlas("recluster", "--images", str(folder / "images"), "--model", MODEL, "--spec", str(settings))
    now = atlas("history")
    assert now[:-1] == told["history"]
    last = told["history"][-1]
    assert now[-1]["embedded"] == 12 and now[-1]["reused"] == last["listed"], "old vectors are taken as they are"
    after = published_run(Store(folder / "store"), ARCHIVE)
    old, new = (dict(zip(*points(run), strict=True)) for run in (before, after))
    assert set(old) < set(new) and sum(new[image] == old[image] for image in old) >= 0.9 * len(old)
    assert not any(FORGOTTEN in uri for uri in observed(after)), "what was forgotten stays away"
    assert atlas("history", "--cluster", "1")["name"] == "one of three"


def points(run: Any) -> tuple[list[str], list[int]]:
    table = run.read_table("cluster", "points.parquet")
    return table["image_id"].to_pylist(), table["cluster_id"].to_pylist()


def observed(run: Any) -> list[str]:
    table = run.read_table("catalog", "observations.parquet", ["uri", "status"])
    return [row["uri"] for row in table.to_pylist() if row["status"] == "ok"]

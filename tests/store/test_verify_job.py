"""The job of `verify_published`: what is sound is said, and damage is a failure that nobody looks at three times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from damage_atlas.query import published_run
from damage_atlas.store import Store, read_version
from tests.architecture.repository import ROOT
from tests.support.older_store import ARCHIVE


def verified(store: Path, archive: str) -> tuple[int, str, dict[str, Any]]:
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'lib'}"}
    argv = [sys.executable, "-m", "workers.verify", str(store), archive]
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    word, _, document = done.stdout.splitlines()[-1].partition(" ")
    return done.returncode, word, json.loads(document)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("written") / "0.1.0.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "store"


def test_damage_is_named_and_not_tried_again(store: Path) -> None:
    run = published_run(Store(str(store)), ARCHIVE)
    version = read_version(Store(str(store)), ARCHIVE).version
    assert verified(store, ARCHIVE) == (
        0, "RAY_JOB_RESULT", {"archive": ARCHIVE, "version": version, "problems": 0},
    )  # fmt: skip
    points = store / run.artifact("cluster").outputs["points.parquet"].key
    points.write_bytes(points.read_bytes()[:-1] + b"?")
    code, word, told = verified(store, ARCHIVE)
    assert (code, word, told["retryable"]) == (1, "RAY_JOB_FAILURE", False)
    assert "points.parquet" in told["message"] and "rollback" in told["message"]


def test_an_archive_without_a_version(tmp_path: Path) -> None:
    code, word, told = verified(tmp_path, "nobody")
    assert code and word == "RAY_JOB_FAILURE" and not told["retryable"] and "nobody" in told["message"]

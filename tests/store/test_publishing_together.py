"""Many processes at one archive, on a folder and on a real S3 server: one version each time, and never half of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from damage_atlas.errors import PublishConflictError
from damage_atlas.publish import publish_run, verify_run
from damage_atlas.query import published_run
from damage_atlas.store import Run, Store, list_versions, read_version
from tests.architecture.repository import ROOT
from tests.support.publisher import ARCHIVE, open_on_current, seal_all

VERSIONS = 50
# One run asks the S3 server some 65 times, and it answers some 90 times a second: there, all 50 in `make test-line`.
VERSIONS_ON_S3 = VERSIONS if os.environ.get("DAMAGE_ATLAS_LINE") else 8


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(tmp_path / "store")
    return Store(f"s3://{request.getfixturevalue('s3_bucket')}/atlas")


def process(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.publisher", *arguments],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def outcome(running: subprocess.Popen[str], say: str | None = None) -> dict[str, Any]:
    out, err = running.communicate(say, timeout=300)
    assert running.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_two_runs_that_start_together(store: Store) -> None:
    """Both are complete before either publishes: one version, one refusal, and nothing of the loser's is visible."""
    runs = [open_on_current(store, name) for name in ("first", "second")]
    for run in runs:
        seal_all(run)
    begin = threading.Barrier(2)
    ended: dict[str, Any] = {}

    def race(run: Run) -> None:
        begin.wait()
        try:
            ended[run.spec.run_id] = publish_run(run).facts["version"]
        except PublishConflictError as error:
            ended[run.spec.run_id] = error

    threads = [threading.Thread(target=race, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [name for name, how in ended.items() if how == 1]
    (loser,) = set(ended) - {winner}
    assert isinstance(ended[loser], PublishConflictError) and not ended[loser].retryable
    assert f"version 1 of {ARCHIVE} was published by run {winner}" in ended[loser].message
    assert "start a new run on top of that version" in ended[loser].message
    assert list_versions(store, ARCHIVE) == [1] and published_run(store, ARCHIVE).spec.run_id == winner
    lost = next(run for run in runs if run.spec.run_id == loser)
    assert lost.stage("publish").sealed is None
    with pytest.raises(PublishConflictError):  # a retry does not change that
        publish_run(lost)


def test_readers_never_see_half_a_version(store: Store) -> None:
    """Two processes publish 50 versions against each other while two others verify the current one."""
    last = VERSIONS if store.folder else VERSIONS_ON_S3
    # Readers that ask without a pause would keep a server of one process to themselves.
    readers = [process("read", store.root, "0.01" if store.folder else "0.5") for _ in range(2)]
    publishers = [process("publish", store.root, name, str(last)) for name in ("a", "b")]
    told = [outcome(each) for each in publishers]
    read = [outcome(each, "enough\n") for each in readers]

    versions = list_versions(store, ARCHIVE)
    assert versions == list(range(1, len(versions) + 1)) and len(versions) in (last, last + 1)
    published = {int(version): run_id for each in told for version, run_id in each["published"].items()}
    assert published == {number: read_version(store, ARCHIVE, number).run_id for number in versions}
    refusals = [message for each in told for message in each["refusals"]]
    assert refusals and all("Nothing of this run is visible" in message for message in refusals), "they did race"
    for each in read:
        assert each["problems"] == [] and each["seen"] == sorted(each["seen"])
        assert each["looks"] >= len(each["seen"]) >= last // 5, "the readers were there all the time"
    assert verify_run(published_run(store, ARCHIVE)) == []

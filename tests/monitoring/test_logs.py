"""The workers' log as JSON lines: each says which run and stage it is about; the two lines for the bridge stay bare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime

import pytest

from damage_atlas.store import Run
from tests.architecture.repository import ROOT


def printed(code: str, *arguments: str, log: str = "json") -> list[str]:
    env = os.environ | {"DAMAGE_ATLAS_LOG": log, "PYTHONPATH": f"{ROOT}:{ROOT / 'lib'}"}
    argv = [sys.executable, *(["-m", code] if code.startswith("workers") else ["-c", code]), *arguments]
    result = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout.splitlines()


def test_a_job_says_what_it_is_about(runs: list[Run]) -> None:
    line, result = printed("workers.publish", runs[0].uri, "--attempt", "3")
    document = json.loads(line)
    assert datetime.fromisoformat(document.pop("time")).tzinfo is not None
    assert document == {
        "level": "INFO", "logger": "workers", "archive": "small", "run_id": "1-recluster", "stage": "publish",
        "attempt": "3", "message": "publish: complete already, nothing to do",
    }  # fmt: skip
    assert result.startswith("RAY_JOB_RESULT {")


def test_by_default_it_is_text(runs: list[Run]) -> None:
    line, _ = printed("workers.publish", runs[0].uri, log="")
    assert line.endswith(" publish: complete already, nothing to do") and "{" not in line


@pytest.mark.parametrize("name", ["two\nlines", '"quoted"', "\udcff", "ü"])
def test_whatever_is_said_stays_one_line(name: str) -> None:
    code = (
        "import logging, sys; from workers.logs import log_to_stdout; log_to_stdout({'stage': 'catalog'})\n"
        f"try: raise ValueError({name!r})\n"
        f"except ValueError: logging.getLogger('damage_atlas').exception('%s', {name!r})"
    )
    (line,) = printed(code)
    document = json.loads(line)
    assert document["message"] == name and "ValueError" in document["exception"] and document["stage"] == "catalog"

"""A whole line on a real S3 server, in a process with secrets in its environment, watched from outside."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.repository import ROOT
from tests.support.s3_server import S3Server


@dataclass(frozen=True)
class Line:
    """What it left behind.

    Attributes:
        secrets: by the variable that held them; that of the store was used for every request.
        objects: all that the store holds.
        said: standard output and error.
        heard: see ``line.py``.
    """

    secrets: dict[str, str]
    objects: dict[str, bytes]
    said: str
    heard: dict[str, Any]


@pytest.fixture(scope="session")
def line(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Line:
    s3_server.create_bucket("watched")
    canaries = {name: secrets.token_hex(16) for name in ("RAY_AUTH_TOKEN", "AIRFLOW_FERNET_KEY", "POSTGRES_PASSWORD")}
    canaries["AWS_SECRET_ACCESS_KEY"] = s3_server.secret_key
    env = os.environ | s3_server.env() | canaries
    env["AIRFLOW_CONN_RAY_DEFAULT"] = json.dumps({"conn_type": "ray", "password": canaries["RAY_AUTH_TOKEN"]})
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "lib")])
    folder: Path = tmp_path_factory.mktemp("watched")
    result = subprocess.run(
        [sys.executable, "-m", "tests.security.line", folder, "s3://watched/atlas"],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    said = result.stdout + result.stderr
    assert result.returncode == 0, said[-4000:]
    heard = next(each for each in result.stdout.splitlines() if each.startswith("HEARD "))
    client = s3_server.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="watched")
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    objects = {key: client.get_object(Bucket="watched", Key=key)["Body"].read() for key in keys}
    return Line(canaries, objects, said, json.loads(heard.removeprefix("HEARD ")))

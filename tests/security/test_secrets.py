"""Secrets of the environment reach nothing that stays: no object of the store, no log, no figure, no error."""

from __future__ import annotations

import io
import sys

import pyarrow.parquet as pq
import pytest

from damage_atlas.cli import main
from tests.security.conftest import Line
from tests.support.s3_server import S3Server


def test_no_object_holds_a_secret(line: Line) -> None:
    assert len(line.objects) > 100
    for key, data in line.objects.items():
        for name, secret in line.secrets.items():
            assert secret.encode() not in data, f"{key} holds {name}"
        if key.endswith(".parquet"):  # compressed
            table = pq.read_table(io.BytesIO(data))
            text = f"{table.schema.metadata} {[c.to_pylist() for c in table.columns if 'list' not in str(c.type)]}"
            assert not [name for name, secret in line.secrets.items() if secret in text], key


def test_no_log_holds_a_secret(line: Line) -> None:
    assert "damage_atlas_version" in line.said and "history" not in line.said[:1]
    assert [name for name, secret in line.secrets.items() if secret in line.said] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["history", "--store", "s3://no-such-bucket/atlas", "--archive", "small"],
        ["history", "--store", "s3://{bucket}/atlas", "--archive", "nobody"],
        ["show", "s3://{bucket}/atlas/archives/small/runs/none"],
    ],
)
@pytest.mark.parametrize("key", ["right", "wrong"])
def test_no_error_holds_a_secret(
    s3_server: S3Server,
    s3_bucket: str,
    arguments: list[str],
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = s3_server.secret_key if key == "right" else "0123456789-this-key-is-wrong"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setattr(sys, "argv", ["damage-atlas", *(each.format(bucket=s3_bucket) for each in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = "".join(capsys.readouterr()) + caplog.text
    assert ended.value.code != 0 or "no published version" in said
    assert secret not in said and said.strip()

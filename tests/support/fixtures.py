"""Fixtures around real services; `tests/conftest.py` registers this module."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, open_browser
from tests.support.faulty_proxy import FaultyProxy
from tests.support.s3_server import S3Server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for the whole test run, empty at the start."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a fresh bucket; the AWS variables of the test's process lead to its server."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.create_bucket(bucket)
    return bucket


@pytest.fixture
def unsteady_bucket(s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh bucket behind a proxy that spoils a twentieth of the answers."""
    with FaultyProxy(s3_server.endpoint_url, share=0.05) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield s3_bucket
    spoilt = sum(proxy.counts.values()) - proxy.counts["passed"]
    assert spoilt, f"no answer was spoilt: {dict(proxy.counts)}"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One headless Chromium for the whole test run; every page it opens has a fresh profile."""
    with open_browser() as running:
        yield running


@pytest.fixture
def own_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbones of `tests.support` may be imported."""
    monkeypatch.setenv("DAMAGE_ATLAS_MODULES", "tests.support")

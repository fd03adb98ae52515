"""The doctor and a real Ray that is protected by a token."""

from __future__ import annotations

import os

import pytest

from damage_atlas.doctor import examine
from infra.local.ray_cluster import LocalRay

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("RAY_", "AIRFLOW", "DAMAGE_ATLAS_STORE"))]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("token", "state", "said"),
    [
        ("its own", "ok", "takes our token"),
        ("another", "bad", "refuses our token"),
        ("", "bad", "wants a token, and we have none"),
    ],
)
def test_it_takes_our_token_or_says_so(
    token: str, state: str, said: str, cluster: LocalRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token == "its own":
        for name, value in cluster.client_env.items():  # RAY_AUTH_TOKEN_PATH
            monkeypatch.setenv(name, value)
    elif token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    findings = examine(ray=cluster.url)
    (ray,) = [finding for finding in findings if finding.check == "ray"]
    assert (ray.state, said in ray.says) == (state, True), ray
    assert any("Ray's head's clock" in finding.says for finding in findings)
    assert cluster.token not in str(findings)


def test_the_connection_of_airflow_will_do(cluster: LocalRay, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.airflow_env.items():
        monkeypatch.setenv(name, value)
    (ray,) = [finding for finding in examine() if finding.check == "ray"]
    assert ray.state == "ok" and cluster.url in ray.says

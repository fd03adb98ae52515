"""Versions on both sides, compared before work starts; on a real Ray."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from airflow_ray_jobs.airflow_compat import AirflowFailException
from airflow_ray_jobs.client import RayJobsClient
from airflow_ray_jobs.errors import VersionMismatch
from airflow_ray_jobs.preflight import check_ray
from tests.airflow_ray_jobs.conftest import TaskInstance


@pytest.fixture
def only_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A distribution that Airflow's side has and Ray's has not; it asks for a Ray between 2 and 3."""
    info = tmp_path / "only_here-2.0.dist-info"
    info.mkdir()
    metadata = 'Metadata-Version: 2.1\nName: only-here\nVersion: 2.0\nRequires-Dist: ray[data]<3,>=2; extra == "ray"\n'
    (info / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "only-here"


def test_the_same_on_both_sides(task: TaskInstance, client: RayJobsClient) -> None:
    operator = task.operator("""echo 'RAY_JOB_RESULT {"n": 1}'; exit 0""", same_versions=["airflow-ray-jobs"])
    assert task.run(operator) == {"n": 1}
    python = "{}.{}".format(*sys.version_info)
    log = client.log(task.triggers[0].submission_id)
    assert f"Same versions in Airflow and on Ray: python {python}, airflow-ray-jobs " in log


def test_a_difference_ends_the_job_before_its_work(task: TaskInstance, client: RayJobsClient, only_here: str) -> None:
    operator = task.operator("echo work begins", same_versions=[only_here])
    with pytest.raises(AirflowFailException, match="only-here is 2.0 in Airflow and none on Ray"):
        task.run(operator)
    assert "work begins" not in client.log(task.triggers[0].submission_id).split("\n")


def test_a_ray_that_is_not_asked_for(only_here: str) -> None:
    check_ray("2.60.0", [only_here])
    check_ray("3.0.0.dev0", ["airflow-ray-jobs"])  # which asks for none
    with pytest.raises(VersionMismatch, match="runs Ray 3.1.0, and only-here asks for ray<3,>=2"):
        check_ray("3.1.0", [only_here])


def test_what_is_not_installed_here_is_a_mistake_in_the_dag(task: TaskInstance, client: RayJobsClient) -> None:
    with pytest.raises(AirflowFailException, match="nobody is named in same_versions and not installed"):
        task.run(task.operator(same_versions=["nobody"]))
    assert client.job(f"{task.base}-1") is None

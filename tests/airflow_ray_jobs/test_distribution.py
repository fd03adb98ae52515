"""What `pip install` of the bridge gives a team: a name, a version, a provider, and no heavy dependency."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import distribution, entry_points
from pathlib import Path

from packaging.requirements import Requirement

import airflow_ray_jobs

FOLDER = Path(airflow_ray_jobs.__file__).parent


def test_it_is_installed_under_its_own_name_and_version() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    installed = distribution("airflow-ray-jobs")
    assert (project["name"], project["version"]) == ("airflow-ray-jobs", installed.version)
    names = [Requirement(line).name for line in installed.requires or []]
    assert names == ["apache-airflow", "asgiref", "httpx", "packaging"]


def test_airflow_finds_one_provider_in_it() -> None:
    ours = [e for e in entry_points(group="apache_airflow_provider") if e.value.startswith("airflow_ray_jobs")]
    assert [entry.dist.name for entry in ours if entry.dist] == ["airflow-ray-jobs"]
    assert ours[0].load()()["package-name"] == "airflow-ray-jobs"


def test_every_module_is_in_the_wheel() -> None:
    """The wheel holds one package; a sub-package would be left out silently."""
    assert {path.parent for path in FOLDER.rglob("*.py") if "build" not in path.parts} == {FOLDER}


def test_the_provider_s_record_loads_without_airflow() -> None:
    """Airflow asks for it while it is itself only half imported."""
    code = "import sys, airflow_ray_jobs.get_provider_info as g; g.get_provider_info(); print('airflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"

"""What has to fit on Airflow's and on Ray's side before a job's work starts. Reads package metadata only.

Airflow's side has no ray, so Ray's version, which its REST API gives, is compared with what the named distributions
require of it. Python and the distributions themselves are compared by the job, as its first act: it sees the very
environment that the work will see.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement

from airflow_ray_jobs import versions_on_ray
from airflow_ray_jobs.errors import VersionMismatch


def check_ray(ray_version: str, distributions: Sequence[str]) -> None:
    """Raise :class:`VersionMismatch` unless Ray is a version that each distribution asks for, in any extra of it."""
    for name in distributions:
        for line in _requires(name):
            requirement = Requirement(line)
            if requirement.name == "ray" and not requirement.specifier.contains(ray_version, prereleases=True):
                raise VersionMismatch(
                    f"The cluster runs Ray {ray_version}, and {name} asks for {requirement.name}"
                    f"{requirement.specifier}. Install a {name} that fits on both sides, or another Ray."
                )


def guarded(entrypoint: str) -> str:
    """The entrypoint, behind a comparison of versions that ends the job when they differ."""
    return f'python -c "$RAY_JOB_PREFLIGHT" || exit $?; {entrypoint}'


def guard_variables(distributions: Sequence[str]) -> dict[str, str]:
    """What :func:`guarded` needs in the job's environment: the code, and what is installed here."""
    wanted = {name: versions_on_ray.installed(name) for name in ("python", *distributions)}
    return {"RAY_JOB_PREFLIGHT": inspect.getsource(versions_on_ray), "RAY_JOB_VERSIONS": json.dumps(wanted)}


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        raise VersionMismatch(
            f"{name} is named in same_versions and not installed on Airflow's side. Install it there, or take it out."
        ) from None

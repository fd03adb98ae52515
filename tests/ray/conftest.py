"""One private Ray cluster for all tests of the workers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from infra.local.ray_cluster import LocalRay
from infra.local.stack import REPOSITORY


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    env = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "lib")])}
    with LocalRay(tmp_path_factory.mktemp("ray"), nodes=2, cpus_per_node=1, env=env) as ray:
        yield ray

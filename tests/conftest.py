"""Fixtures of all tests. Servers are real, started when first asked for, and stopped at the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["tests.support.fixtures"]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets; tests that need it skip without."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DAMAGE_ATLAS_DATA", beside))
    if not (folder / "steel-neu").is_dir():
        pytest.skip("real images are not here: set DAMAGE_ATLAS_DATA to the folder that holds steel-neu/")
    return folder

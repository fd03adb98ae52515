"""Fixtures of all tests. Servers are real, started when first asked for, and stopped at the end."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

# The same examples each time: a check of one commit must not depend on luck. HYPOTHESIS_PROFILE=default looks further.
with suppress(ImportError):  # where the bridge is tested on an old Airflow, nothing else is installed
    from hypothesis import settings

    settings.register_profile("same-examples", derandomize=True, deadline=None)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same-examples"))

pytest_plugins = ["tests.support.fixtures"]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets; tests that need it skip without."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DAMAGE_ATLAS_DATA", beside))
    if not (folder / "steel-neu").is_dir():
        pytest.skip("real images are not here: set DAMAGE_ATLAS_DATA to the folder that holds steel-neu/")
    return folder

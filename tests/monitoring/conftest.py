"""What the tests of the figures watch."""

from __future__ import annotations

import pytest

from damage_atlas.store import Run
from tests.support.published import publish_small


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """The runs behind the two versions of the archive ``small``."""
    return publish_small(tmp_path_factory.mktemp("published"))

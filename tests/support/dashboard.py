"""The Grafana dashboard as tests ask its questions: variables filled in."""

from __future__ import annotations

import json
from typing import Any

from tests.architecture.repository import read

DASHBOARD: dict[str, Any] = json.loads(read("infra/grafana/dashboards/damage-atlas.json"))


def panels() -> list[dict[str, Any]]:
    """All panels but the headings of rows."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions(panel: dict[str, Any]) -> list[str]:
    """What the panel asks Prometheus, for all archives."""
    return [target["expr"].replace("$archive", ".*") for target in panel["targets"]]

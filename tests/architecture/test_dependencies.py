"""What is inside: the lock, and the bill of materials that `make check` writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.repository import ROOT, read

# Their packages say it in free text alone: Apache-2.0, and three-clause BSD.
LICENCE_UNSAID = {"ray", "protobuf"}


@pytest.fixture(scope="module")
def bill(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By the command of the Makefile."""
    lines = read("Makefile").splitlines()
    recipe = next(line for line in lines if "$(SBOM)" in line)
    tool = next(line for line in lines if line.startswith("SBOM :="))
    file = tmp_path_factory.mktemp("bill") / "sbom.json"
    command = recipe.strip().replace("$(SBOM)", tool.partition(":=")[2].strip()).replace("var/sbom.json", str(file))
    command = command.replace("$(BIN)", str(Path(sys.executable).parent)).replace("$(PYTHON)", sys.executable)
    subprocess.run(command, shell=True, cwd=ROOT, check=True, capture_output=True, timeout=300)
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_it_lists_what_is_locked(bill: dict[str, Any]) -> None:
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["name"] == "damage-atlas"
    listed = {plain(part["name"]): part["version"].split("+")[0] for part in bill["components"]}
    lock = re.findall(r"^([\w.-]+)==(\S+)", read("requirements.lock"), re.MULTILINE)
    assert len(lock) > 150
    assert {name: version for name, version in lock if listed.get(plain(name)) != version} == {}


def test_it_names_licences(bill: dict[str, Any]) -> None:
    unsaid = {plain(part["name"]) for part in bill["components"] if not part.get("licenses")}
    assert unsaid <= LICENCE_UNSAID

"""Who imports whom: the walls of the house."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.architecture.repository import ROOT, run_python


def test_import_rules_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [lint, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'lib'}{os.pathsep}{ROOT}"},
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr


def test_contracts_spec_and_store_load_nothing_heavy() -> None:
    heavy = {"torch", "faiss", "matplotlib", "sklearn", "openTSNE", "ray", "airflow", "PIL", "boto3"}
    loaded = run_python(
        "import sys, damage_atlas, damage_atlas.contracts, damage_atlas.spec, damage_atlas.store\n"
        f"print([name for name in {heavy} if name in sys.modules])",
        os.environ | {"PYTHONPATH": str(ROOT / "lib")},
    )
    assert loaded.strip() == "[]"

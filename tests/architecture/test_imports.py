"""Who imports whom: the walls of the house."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT, python_files, read, run_python

# What can run code of whoever wrote the file; weights are safetensors, tables Parquet, documents JSON or YAML.
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def test_import_rules_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [lint, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
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


@pytest.mark.parametrize("file", python_files("lib", "workers", "dags", "infra"))
def test_nothing_unpickles(file: str) -> None:
    for node in ast.walk(ast.parse(read(file))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        unsafe = UNSAFE_MODULES & {name.split(".")[0] for name in names}
        assert not unsafe, f"{file}:{getattr(node, 'lineno', 0)} imports {unsafe}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load"), f"{file}:{node.lineno} calls torch.load"

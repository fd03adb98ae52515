"""Who imports whom: the walls of the house."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from damage_atlas.contracts import STAGES_OF_KIND
from damage_atlas.spec import ArchiveSpec, parse_document
from tests.architecture.repository import ROOT, files, python_files, read, run_python

# What can run code of whoever wrote the file; weights are safetensors, tables Parquet, documents JSON or YAML.
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ImportError(name + " is blocked: it must not be imported here")

sys.meta_path.insert(0, Blocked())
"""

LOAD_DAGS = """
import json, ray_reaper, recluster, train_model
from airflow.sdk import DAG
from airflow_ray_jobs import RayJobOperator

dags = [value for value in vars(recluster).values() if isinstance(value, DAG)] + [train_model.run.operator.dag]
print("DAGS " + json.dumps({
    dag.dag_id: {"tasks": [[t.task_id, isinstance(t, RayJobOperator), bool(t.doc_md)] for t in dag.topological_sort()],
                 "docs": bool(dag.doc_md), "catchup": dag.catchup, "at_once": dag.max_active_runs}
    for dag in dags
}))
"""


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


def test_dags_need_neither_ray_nor_torch(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("lib", ".", "dags")),
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "DAMAGE_ATLAS_ARCHIVES": str(ROOT / "infra" / "archives"),
    }
    names = {"ray", "torch", "faiss", "sklearn", "openTSNE", "PIL", "matplotlib", "typer", "workers"}
    output = run_python(BLOCK.format(names=names) + LOAD_DAGS, environment, timeout_s=120)
    dags = json.loads(next(line for line in output.splitlines() if line.startswith("DAGS ")).removeprefix("DAGS "))

    archives = {
        parse_document(ArchiveSpec, read(f), f).archive
        for f in files()
        if f.startswith("infra/archives/") and f.endswith(".yaml")
    }
    assert set(dags) == {"train_model"} | {f"recluster_{name}" for name in archives}
    for dag_id, dag in dags.items():
        kind = "train" if dag_id == "train_model" else "recluster"
        last = [] if kind == "train" else ["alert"]
        assert [task for task, _, _ in dag["tasks"]] == ["open_run", *STAGES_OF_KIND[kind], *last], dag_id
        stages = [(on_ray, documented) for task, on_ray, documented in dag["tasks"] if task in STAGES_OF_KIND[kind]]
        assert all(on_ray and documented for on_ray, documented in stages), dag_id
        assert dag["docs"] and dag["catchup"] is False and dag["at_once"] == 1, dag_id


def test_contracts_spec_and_store_load_nothing_heavy() -> None:
    heavy = {"torch", "faiss", "matplotlib", "sklearn", "openTSNE", "ray", "airflow", "PIL", "boto3"}
    loaded = run_python(
        "import sys, damage_atlas, damage_atlas.contracts, damage_atlas.spec, damage_atlas.store\n"
        f"print([name for name in {heavy} if name in sys.modules])",
        os.environ | {"PYTHONPATH": str(ROOT / "lib")},
    )
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("file", python_files("lib", "workers", "dags"))
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

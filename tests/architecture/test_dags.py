"""Policy for DAG files and UI plugins: what they may import, and what every DAG and every task must have."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from damage_atlas.contracts import STAGES_OF_KIND
from damage_atlas.spec import ArchiveSpec, parse_document
from tests.architecture.repository import ROOT, files, python_files, read, run_python

# None of these is in the Airflow image, or may be loaded each time that a DAG file is parsed.
HEAVY = {"ray", "torch", "faiss", "sklearn", "openTSNE", "PIL", "matplotlib", "typer", "workers"}
OPEN_RUN = "open_run"
ALERT = "alert"
GPU_STAGES = {"train", "embed", "explain"}

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ImportError(name + " is blocked: it must not be imported here")

sys.meta_path.insert(0, Blocked())
"""

LOAD = """
import importlib, json
from airflow.sdk import DAG
from airflow_ray_jobs import RayJobOperator

dags = {{}}
for name in {modules}:
    for value in vars(importlib.import_module(name)).values():
        if isinstance(value, DAG):
            dags[value.dag_id] = value

def seconds(span):
    return span.total_seconds() if span else None

def described(task):
    mapped = task.partial_kwargs if hasattr(task, "partial_kwargs") else {{}}
    def of(name):
        return mapped[name] if mapped.get(name) is not None else getattr(task, name, None)
    kind = getattr(task, "operator_class", type(task))
    return {{
        "on_ray": isinstance(kind, type) and issubclass(kind, RayJobOperator), "docs": bool(of("doc_md")),
        "owner": of("owner"), "timeout_s": seconds(of("execution_timeout")), "retries": of("retries"),
        "pool": of("pool"),
    }}

def param(dag, name):
    found = dag.params.get_param(name)
    return found.schema | {{"described": bool(found.description)}}

print("DAGS " + json.dumps({{
    dag.dag_id: {{
        "tasks": {{task.task_id: described(task) for task in dag.topological_sort()}}, "docs": bool(dag.doc_md),
        "tags": sorted(dag.tags), "catchup": dag.catchup, "at_once": dag.max_active_runs,
        "late_s": [seconds(each.interval) for each in dag.deadline or []],
        "told": len(dag.on_failure_callback) if isinstance(dag.on_failure_callback, list) else 0,
        "params": {{name: param(dag, name) for name in dag.params}},
    }}
    for dag in dags.values()
}}))
"""


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    folders = ("lib", ".", "dags", "infra/airflow/plugins")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in folders),
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "DAMAGE_ATLAS_ARCHIVES": str(ROOT / "infra" / "archives"),
        **more,
    }


def load(tmp_path: Path, **more: str) -> dict[str, Any]:
    """Every DAG of the repository, from an interpreter in which nothing heavy can be imported."""
    modules = [Path(file).stem for file in python_files("dags")]
    code = BLOCK.format(names=HEAVY) + LOAD.format(modules=modules)
    output = run_python(code, environment(tmp_path, **more), timeout_s=120)
    line = next(line for line in output.splitlines() if line.startswith("DAGS "))
    dags: dict[str, Any] = json.loads(line.removeprefix("DAGS "))
    return dags


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    notifiers = [
        {"notifier": "tests.support.notifier.WritesToFile", "path": "told.txt", "text": "{{ dag_run.run_id }}"}
    ]
    return load(
        tmp_path_factory.mktemp("airflow"),
        DAMAGE_ATLAS_NOTIFIERS=json.dumps(notifiers),
        DAMAGE_ATLAS_GPU_POOL="gpu",
    )


def test_one_dag_for_each_archive_whose_tasks_are_the_stages(dags: dict[str, Any]) -> None:
    archives = {
        parse_document(ArchiveSpec, read(f), f).archive
        for f in files()
        if f.startswith("infra/archives/") and f.endswith(".yaml")
    }
    flows = {dag_id: "recluster" for dag_id in dags if dag_id.startswith("recluster_")} | {"train_model": "train"}
    assert set(flows) == {"train_model"} | {f"recluster_{name}" for name in archives}
    for dag_id, kind in flows.items():
        last = [ALERT] if kind == "recluster" else []
        assert list(dags[dag_id]["tasks"]) == [OPEN_RUN, *STAGES_OF_KIND[kind], *last], dag_id
        for name, task in dags[dag_id]["tasks"].items():
            assert task["on_ray"] is (name not in (OPEN_RUN, ALERT)), (dag_id, name)
            assert task["pool"] == ("gpu" if name in GPU_STAGES else "default_pool"), (dag_id, name)
    assert set(dags) - set(flows) == {"backfill", "ray_reaper", "sweep_training", "verify_published", "prune_runs"}


def test_every_dag_can_be_run_by_people(dags: dict[str, Any]) -> None:
    for dag_id, dag in dags.items():
        assert dag["docs"] and "damage-atlas" in dag["tags"] and len(dag["tags"]) > 1, dag_id
        assert dag["catchup"] is False and dag["at_once"] == 1, dag_id
        for name, schema in dag["params"].items():
            assert schema["described"] and schema.get("title") and schema.get("type"), (dag_id, name)


def test_every_task_has_an_owner_an_end_and_a_description(dags: dict[str, Any]) -> None:
    for dag_id, dag in dags.items():
        for name, task in dag["tasks"].items():
            assert task["owner"] not in (None, "", "airflow"), (dag_id, name)
            assert 0 < (task["timeout_s"] or 0) <= 12 * 3600, (dag_id, name)
            assert task["docs"], (dag_id, name)
            # While a delivery waited to be tried again, later ones would pass it.
            in_order = (dag_id, name) == ("backfill", "recluster")
            assert task["retries"] == 0 if in_order else 1 <= task["retries"] <= 3, (dag_id, name)


def test_people_are_told_of_what_fails_and_of_what_is_late(dags: dict[str, Any], tmp_path: Path) -> None:
    for dag_id, dag in dags.items():
        assert dag["told"] == 1 and len(dag["late_s"]) == 1 and dag["late_s"][0] > 0, dag_id
    for dag in load(tmp_path).values():
        assert (dag["told"], dag["late_s"]) == (0, []), "nobody is told unless somebody is named"


def test_notifiers_that_cannot_be_used_are_an_import_error(tmp_path: Path) -> None:
    """All in one interpreter: importing Airflow takes seconds."""
    mistaken = [
        "{", "[7]", '[{"to": "x"}]', '[{"notifier": "no.such.Notifier"}]', '[{"notifier": "json.JSONDecoder"}]',
        '[{"notifier": "tests.support.notifier.WritesToFile", "mispelt": 1}]',
    ]  # fmt: skip
    code = f"""
import os
import notify

for mistaken in {mistaken}:
    os.environ[notify.VARIABLE] = mistaken
    try:
        notify.alerts(1)
    except ValueError as error:
        print("SAID", error)
"""
    said = [line for line in run_python(code, environment(tmp_path), 120).splitlines() if line.startswith("SAID")]
    assert len(said) == len(mistaken)
    assert all(line.startswith("SAID DAMAGE_ATLAS_NOTIFIERS cannot be used") for line in said), said


def test_plugins_import_nothing_heavy_until_they_are_asked(tmp_path: Path) -> None:
    """Airflow loads them in every process, that of a task included."""
    modules = [Path(file).stem for file in python_files("infra/airflow/plugins")]
    assert modules
    code = f"""
import importlib
from airflow.plugins_manager import is_valid_plugin
plugins = [each for name in {modules} for each in vars(importlib.import_module(name)).values() if is_valid_plugin(each)]
assert plugins and all(plugin.name for plugin in plugins)
assert "airflow.api_fastapi.core_api.security" not in sys.modules
"""
    run_python(BLOCK.format(names=HEAVY | {"boto3", "pyarrow"}) + code, environment(tmp_path), timeout_s=120)

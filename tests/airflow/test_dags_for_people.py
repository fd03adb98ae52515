"""The project's DAGs on a real Airflow, up to where Ray would begin: what starts them, keeps them apart, who hears.

No Ray is here: the task `catalog` waits for one, which is what a run that is late looks like.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from damage_atlas.publish import publish_run
from damage_atlas.spec import ArchiveSpec, Settings, dump_yaml, with_overrides
from damage_atlas.store import Run, Store, promote_model
from infra.local.airflow import LocalAirflow
from infra.local.stack import REPOSITORY
from tests.lib.report.synthetic_run import Scene, make_run
from tests.support.publisher import ARCHIVE as BRIDGE
from tests.support.publisher import open_on_current, seal_all

pytestmark = pytest.mark.airflow

# A task that promotes a model as `train` does, after it was deferred as `train` is.
PROMOTES = """
from datetime import timedelta
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, DAG, Param
from atlas_flow import PROMOTED, announce_model

class Waits(BaseOperator):
    def execute(self, context):
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="resume")

    def resume(self, context, event):
        return {"model": "promoted"}

with DAG("promotes", schedule=None, params={"archive": Param("follows", type="string")}):
    Waits(task_id="train", outlets=[PROMOTED], post_execute=announce_model)
"""
MODEL = "damage"
# As docs/operations.md has it.
TEXT = (
    "{{ dag_run.dag_id }} {{ dag_run.run_id or dag_run.dag_run_id }} "
    "{{ 'is late' if deadline is defined else 'failed' }}"
)


def archive(name: str, model: str = MODEL, **more: Any) -> ArchiveSpec:
    return ArchiveSpec(archive=name, images=f"images/{name}", model=model, **more)


ARCHIVES = [
    archive("follows", schedule="0 2 1 1 *", timezone="Europe/Berlin", deadline_hours=5 / 3600),
    archive("beside", model="another"),
    archive("untrained", model="never-trained"),
    *(archive(name, settings=with_overrides(Settings(), ["catalog.deliveries=folder"])) for name in ("past", BRIDGE)),
]
DELIVERIES = ("2025-03", "2025-06", "2025-09", "2025-12")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = make_run(tmp_path_factory.mktemp("made"), Scene(images=20, clusters=1, previous=False))
    promote_model(made.store, MODEL, "v1", "for the test")
    return made.store


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("told") / "lines"


@pytest.fixture(scope="module")
def airflow(store: Store, told: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    root = tmp_path_factory.mktemp("airflow")
    for folder in ("dags", "archives"):
        (root / folder).mkdir()
    for file in (REPOSITORY / "dags").glob("*.py"):
        shutil.copy(file, root / "dags")
    (root / "dags" / "promotes.py").write_text(PROMOTES)
    for spec in ARCHIVES:
        (root / "archives" / f"{spec.archive}.yaml").write_text(dump_yaml(spec))
        for delivery in DELIVERIES:
            (root / "images" / spec.archive / delivery).mkdir(parents=True)
    env = {
        "PYTHONPATH": ":".join(str(REPOSITORY / folder) for folder in ("lib", ".")),
        "DAMAGE_ATLAS_STORE": store.root,
        "DAMAGE_ATLAS_DATA": str(root),
        "DAMAGE_ATLAS_ARCHIVES": str(root / "archives"),
        "DAMAGE_ATLAS_NOTIFIERS": json.dumps(
            [{"notifier": "tests.support.notifier.WritesToFile", "path": str(told), "text": TEXT}]
        ),
        "AIRFLOW_CONN_RAY_DEFAULT": json.dumps({"conn_type": "ray", "host": "127.0.0.1", "port": 9}),
    }
    with LocalAirflow(root / "home", root / "dags", env=env) as airflow:
        airflow.wait_for_dags(
            {"promotes", "prune_runs", "backfill", *(f"recluster_{spec.archive}" for spec in ARCHIVES)}
        )
        yield airflow


def until(ready: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := ready()):
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s:.0f} s"
        time.sleep(0.5)
    return found


def heard(told: Path, dag: str, run_id: str, what: str) -> bool:
    return told.exists() and f"{dag} {run_id} {what}" in told.read_text().splitlines()


def runs(airflow: LocalAirflow, dag: str) -> dict[str, dict[str, Any]]:
    return {each["dag_run_id"]: each for each in airflow.get(f"/dags/{dag}/dagRuns?limit=100")["dag_runs"]}


def opened(airflow: LocalAirflow, dag: str, run_id: str) -> Run:
    until(lambda: airflow.task_states(dag, run_id).get("open_run") == "success", f"open_run of {run_id}")
    return Run.load(airflow.xcom(dag, run_id, "open_run"))


def end(airflow: LocalAirflow, dag: str, run_id: str) -> None:
    airflow.call("PATCH", f"/dags/{dag}/dagRuns/{quote(run_id, safe='')}", {"state": "failed"})


def event(airflow: LocalAirflow, asset: str, extra: dict[str, str]) -> None:
    (found,) = [each for each in airflow.get("/assets?limit=100")["assets"] if each["name"] == asset]
    airflow.call("POST", "/assets/events", {"asset_id": found["id"], "extra": extra})


def test_bad_input_is_not_tried_again_and_people_hear_of_it(airflow: LocalAirflow, told: Path) -> None:
    run_id = airflow.trigger("recluster_untrained")
    assert airflow.wait_for_run("recluster_untrained", run_id, timeout_s=120) == "failed"
    (task,) = [t for t in airflow.task_instances("recluster_untrained", run_id) if t["task_id"] == "open_run"]
    assert (task["state"], task["try_number"]) == ("failed", 1)
    assert "never-trained has no promoted version" in airflow.task_log("recluster_untrained", run_id, "open_run")
    until(lambda: heard(told, "recluster_untrained", run_id, "failed"), "the notifier")


def test_the_dag_says_when_it_starts(airflow: LocalAirflow) -> None:
    dag = airflow.get("/dags/recluster_follows/details")
    assert "0 2 1 1 *" in str(dag["timetable_summary"]) + str(dag["timetable_description"]), dag
    assert "by the clock (`0 2 1 1 *`, Europe/Berlin)" in dag["doc_md"]
    assert "by hand" in airflow.get("/dags/recluster_beside/details")["doc_md"]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"model_version": "../v1"}, "model_version"),
        ({"delivery": "x" * 300}, "delivery"),
        ({"delivery": 3}, "delivery"),
    ],
)
def test_the_form_is_checked(form: dict[str, Any], said: str, airflow: LocalAirflow) -> None:
    with pytest.raises(Exception, match=rf"400.*{said}"):
        airflow.trigger("recluster_untrained", form)


def test_a_delivery_starts_its_archive_and_a_second_run_waits(airflow: LocalAirflow, told: Path) -> None:
    dag = "recluster_follows"
    airflow.call("PATCH", f"/dags/{dag}", {"is_paused": False})
    event(airflow, "deliveries follows", {"delivery": "2026-03"})
    first = until(lambda: list(runs(airflow, dag)), "a run for the delivery")[0]
    assert runs(airflow, dag)[first]["run_type"] == "asset_triggered"
    assert opened(airflow, dag, first).spec.delivery == "2026-03"

    second = airflow.trigger(dag, {"delivery": "2026-04"})
    until(lambda: heard(told, dag, first, "is late"), "word of the missed deadline", timeout_s=180)
    assert (airflow.run_state(dag, first), airflow.run_state(dag, second)) == ("running", "queued")
    assert airflow.task_states(dag, second).get("open_run") is None, "the second run has not begun"
    end(airflow, dag, first)
    assert opened(airflow, dag, second).spec.delivery == "2026-04"
    end(airflow, dag, second)


def test_a_promoted_model_starts_its_archives_alone(airflow: LocalAirflow) -> None:
    known = set(runs(airflow, "recluster_follows"))
    airflow.call("PATCH", "/dags/recluster_beside", {"is_paused": False})
    promoted = airflow.trigger("promotes")
    assert airflow.wait_for_run("promotes", promoted, timeout_s=120) == "success"
    (run_id,) = until(lambda: set(runs(airflow, "recluster_follows")) - known, "a run for the new model")
    assert runs(airflow, "recluster_follows")[run_id]["run_type"] == "asset_triggered"
    run = opened(airflow, "recluster_follows", run_id)
    assert (run.spec.delivery, run.spec.model, run.spec.model_version) == (None, MODEL, "v1")
    end(airflow, "recluster_follows", run_id)
    assert runs(airflow, "recluster_beside") == {}, "it has another model"


def test_past_deliveries_are_run_in_order(airflow: LocalAirflow) -> None:
    dag = "recluster_past"
    airflow.call("PATCH", f"/dags/{dag}", {"is_paused": False})
    backfill = airflow.trigger("backfill", {"archive": "past", "last": "2025-09"})
    waiting = until(lambda: len(found := runs(airflow, dag)) == 3 and found, "a run for each delivery")
    order = sorted(waiting, key=lambda run_id: waiting[run_id]["run_after"])
    assert order == [f"{backfill}__{delivery}" for delivery in DELIVERIES[:3]]
    for number, run_id in enumerate(order):
        assert opened(airflow, dag, run_id).spec.delivery == DELIVERIES[number]
        assert [airflow.run_state(dag, later) for later in order[number + 1 :]] == ["queued"] * (2 - number)
        end(airflow, dag, run_id)
    assert airflow.wait_for_run("backfill", backfill, timeout_s=120) == "success"


def test_a_backfill_of_what_is_not_there_is_refused(airflow: LocalAirflow) -> None:
    run_id = airflow.trigger("backfill", {"archive": "past", "first": "2024-01"})
    assert airflow.wait_for_run("backfill", run_id, timeout_s=120) == "failed"
    said = airflow.task_log("backfill", run_id, "past_deliveries")
    assert "delivery '2024-01' is not there; there are: 2025-03, 2025-06, 2025-09, 2025-12." in said


def test_a_backfill_begins_after_what_is_published(airflow: LocalAirflow, store: Store) -> None:
    airflow.call("PATCH", f"/dags/recluster_{BRIDGE}", {"is_paused": False})
    published = open_on_current(store, "first")
    seal_all(published, DELIVERIES[:2])
    publish_run(published)
    run_id = airflow.trigger("backfill", {"archive": BRIDGE, "last": "2025-09"})
    waiting = until(lambda: runs(airflow, f"recluster_{BRIDGE}"), "a run for the delivery")
    assert list(waiting) == [f"{run_id}__2025-09"]
    end(airflow, f"recluster_{BRIDGE}", f"{run_id}__2025-09")

    run_id = airflow.trigger("backfill", {"archive": BRIDGE, "last": "2025-06"})
    assert airflow.wait_for_run("backfill", run_id, timeout_s=180) == "success"
    assert airflow.task_states("backfill", run_id)["past_deliveries"] == "skipped"


def test_what_was_never_published_is_taken_away(airflow: LocalAirflow, store: Store) -> None:
    begun = (datetime.now(UTC) - timedelta(days=60)).strftime("%Y%m%dT%H%M%SZ")
    spec = open_on_current(Store(store.root), begun).spec
    old = Run(store, f"archives/beside/runs/{begun}", spec.model_copy(update={"archive": "beside"}))
    store.create(f"{old.key}/run.yaml", dump_yaml(old.spec).encode())
    young = Run(store, "archives/beside/runs/20010101T000000Z", old.spec)
    store.create(f"{young.key}/run.yaml", dump_yaml(old.spec).encode())
    seal_all(young)
    run_id = airflow.trigger("prune_runs", {"days": 50})
    assert airflow.wait_for_run("prune_runs", run_id, timeout_s=180) == "success"
    assert old.retired and not young.retired

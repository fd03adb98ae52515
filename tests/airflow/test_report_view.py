"""The report of a run inside a real Airflow, in a real browser: whoever is logged in sees it, and it can do nothing."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import pytest
from playwright.sync_api import Frame, Page

from damage_atlas.doctor import examine
from damage_atlas.report import write_report
from damage_atlas.store import Run, Store
from infra.local.airflow import LocalAirflow
from infra.local.stack import REPOSITORY
from tests.lib.report.synthetic_run import Scene, make_run
from tests.support.browser import Browser
from tests.support.s3_server import S3Server

pytestmark = [pytest.mark.airflow, pytest.mark.browser, pytest.mark.s3]

# What `recluster_<archive>` does as far as the report is concerned, without the hours between.
DAGS = """
from airflow.sdk import DAG, get_current_context, task
from airflow.sdk import BaseOperator
from atlas_flow import ReportLink

class Linked(BaseOperator):
    operator_extra_links = (ReportLink(),)

    def execute(self, context):
        pass

with DAG("shows", schedule=None):
    @task
    def open_run():
        return get_current_context()["dag_run"].conf["run_uri"]

    open_run() >> Linked(task_id="report")
"""
READY = "document.documentElement.dataset.map === 'ready'"
# What a page would try that wants to act with the reader's session; it writes down how far it got.
HOSTILE_PAGE = b"""<!doctype html><meta charset=utf-8><title>hostile</title><pre id=told></pre>
<img id=picture src="/api/v2/dags"><form id=form method=post action="/api/v2/dags"></form>
<script>
const told = {origin: window.origin};
const attempt = (name, act) => { try { told[name] = String(act()); } catch (error) { told[name] = error.name; } };
attempt("cookie", () => document.cookie);
attempt("storage", () => localStorage.length);
attempt("parent", () => parent.document.title);
attempt("popup", () => open("/api/v2/dags"));
attempt("form", () => document.getElementById("form").submit());
attempt("top", () => { top.location = "/api/v2/dags"; return "gone"; });
const asked = fetch("/api/v2/dags", {credentials: "include"});
asked.then((answer) => answer.status, (error) => error.name).then((result) => {
  told.fetch = String(result);
  document.getElementById("told").textContent = JSON.stringify(told);
});
</script>"""


@pytest.fixture(scope="module", params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if request.param == "folder":
        yield Store(tmp_path_factory.mktemp("a store"))  # the blank is in its address
        return
    server: S3Server = request.getfixturevalue("s3_server")
    server.create_bucket("reports")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.env().items():
            patch.setenv(name, value)
        yield Store("s3://reports/atlas")


@pytest.fixture(scope="module")
def runs(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs of the store by what is the matter with them, each with an id of its own."""
    made = make_run(tmp_path_factory.mktemp("made"), Scene(images=120, clusters=5))
    write_report(made)
    for item in made.store.list():
        store.create(item.key, made.store.read(item.key))

    def another(run_id: str) -> Run:
        spec = made.spec.model_copy(update={"run_id": run_id})
        run = Run(store, f"archives/{spec.archive}/runs/{run_id}", spec)
        store.create(f"{run.key}/run.yaml", made.store.read(f"{made.key}/run.yaml").replace(
            made.spec.run_id.encode(), run_id.encode()))  # fmt: skip
        return run

    sound = Run(store, made.key, made.spec)
    unfinished = another("unfinished")

    hostile = another("hostile")
    stage = hostile.stage("report")
    stage.write("index.html", HOSTILE_PAGE)
    stage.seal((), {"in": 1, "out": 1, "failed": 0})

    # Sealed by somebody who wants to show another object of the store, and the digest is right.
    outside = another("outside")
    stage = outside.stage("report")
    stage.adopt("index.html", sound.artifact("cluster").outputs["points.parquet"])
    stage.seal((), {"in": 1, "out": 1, "failed": 0})

    above = another("above")
    stage = above.stage("report")
    taken = sound.artifact("report").outputs["index.html"]
    stage.adopt("index.html", taken.model_copy(update={"key": f"{above.key}/report/../../../../../../etc/passwd"}))
    stage.seal((), {"in": 1, "out": 1, "failed": 0})

    changed = another("changed")
    stage = changed.stage("report")
    stage.write("index.html", b"<p>sealed")
    output = stage._outputs["index.html"]
    stage.adopt("index.html", output.model_copy(update={"sha256": "0" * 64}))
    stage.seal((), {"in": 1, "out": 1, "failed": 0})
    return {"sound": sound, "unfinished": unfinished, "hostile": hostile, "outside": outside, "above": above,
            "changed": changed}  # fmt: skip


@pytest.fixture(scope="module")
def airflow(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    root = tmp_path_factory.mktemp("airflow")
    (root / "dags").mkdir()
    (root / "dags" / "shows.py").write_text(DAGS)
    env = {
        "PYTHONPATH": ":".join(str(REPOSITORY / folder) for folder in ("lib", ".", "dags")),
        "DAMAGE_ATLAS_STORE": store.root,
        "DAMAGE_ATLAS_ARCHIVES": str(root / "no-archives"),
    }
    plugins = REPOSITORY / "infra" / "airflow" / "plugins"
    with LocalAirflow(root / "home", root / "dags", plugins, env=env) as airflow:
        airflow.wait_for_dags({"shows"})
        yield airflow


@pytest.fixture(scope="module")
def dag_runs(airflow: LocalAirflow, runs: dict[str, Run], store: Store) -> dict[str, str]:
    """A DAG run for each run, and for addresses that are none: its id by what is the matter."""
    uris = {name: run.uri for name, run in runs.items()} | {
        "foreign": "file:///elsewhere/archives/north-bridge/runs/20260301T020000Z",
        "parent": f"{store.root}/archives/../../archives/north-bridge/runs/20260301T020000Z",
        "dots": f"{store.root}/archives/north-bridge/runs/..",
        "file": "/etc/passwd",
        "nul": f"{store.root}/archives/north-bridge/runs/a\0b",
    }
    # All that Airflow lets a person name a run by.
    ids = {name: airflow.trigger("shows", {"run_uri": uri}, run_id=f"by-hand~{name}:+1") for name, uri in uris.items()}
    for run_id in ids.values():
        assert airflow.wait_for_run("shows", run_id, timeout_s=240) == "success"
    return ids


def ask(airflow: LocalAirflow, query: dict[str, str], headers: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Status, text and policy of the route's answer."""
    address = urlsplit(airflow.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    connection.request("GET", f"/damage-atlas/report?{urlencode(query)}", headers=headers or {})
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, text, answer.headers.get("Content-Security-Policy", "")


@pytest.fixture(scope="module")
def bearer(airflow: LocalAirflow) -> dict[str, str]:
    return airflow.bearer


@pytest.fixture
def page(airflow: LocalAirflow, browser: Browser) -> Iterator[Page]:
    """A browser that has logged in by Airflow's form."""
    opened = browser.open(airflow.url, width=1400, height=1000).page
    opened.locator("input[name=username]").fill(airflow.user)
    opened.locator("input[name=password]").fill(airflow.password)
    opened.locator("button[type=submit]").click()
    opened.wait_for_url(lambda url: "/auth/login" not in url, timeout=60_000)
    yield opened
    opened.context.close()


def report_frame(page: Page) -> Frame:
    """The report within Airflow's page, once it is loaded."""
    handle = page.wait_for_selector("iframe[title=Report]", timeout=60_000)
    frame = handle.content_frame()
    assert frame is not None
    frame.wait_for_load_state("load")
    return frame


def tab(airflow: LocalAirflow, run_id: str) -> str:
    return f"{airflow.url}/dags/shows/runs/{quote(run_id, safe='')}/plugin/damage-atlas-report"


def test_a_person_opens_the_report_from_its_task(
    airflow: LocalAirflow, dag_runs: dict[str, str], runs: dict[str, Run], page: Page, tmp_path: Path
) -> None:
    report_tab = tab(airflow, dag_runs["sound"])
    path = f"/dags/shows/dagRuns/{quote(dag_runs['sound'], safe='')}/taskInstances/report/links"
    assert airflow.get(path)["extra_links"] == {"Report": report_tab.removeprefix(f"{airflow.url}/")}
    page.goto(report_tab.replace("/plugin/damage-atlas-report", "/tasks/report/details"))
    page.get_by_role("link", name="Report", exact=True).first.click()
    frame = report_frame(page)
    frame.wait_for_function(READY)
    assert frame.locator("[data-fact=run_id]").first.inner_text() == runs["sound"].spec.run_id
    frame.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert frame.evaluate("window.origin") == "null"
    frame.locator(".card .shot").first.click()
    assert frame.locator("#large .pair img").count() == 2, "the page's own scripts run"
    page.keyboard.press("Escape")
    page.screenshot(path=str(tmp_path / "report-in-airflow.png"))


def test_a_hostile_report_cannot_use_the_session(airflow: LocalAirflow, dag_runs: dict[str, str], page: Page) -> None:
    page.goto(tab(airflow, dag_runs["hostile"]))
    frame = report_frame(page)
    frame.wait_for_function("!!document.getElementById('told')?.textContent")
    told = json.loads(frame.locator("#told").inner_text())
    assert told == {
        "origin": "null",
        "cookie": "SecurityError",
        "storage": "SecurityError",
        "parent": "SecurityError",
        "popup": "null",
        "form": "undefined",  # it says nothing, and submits nothing
        "top": "SecurityError",
        "fetch": "TypeError",
    }
    assert frame.evaluate("document.getElementById('picture').naturalWidth") == 0
    assert page.url == tab(airflow, dag_runs["hostile"]) and frame.url.endswith("%2B1")


def test_the_doctor_finds_airflow_and_the_store_well(airflow: LocalAirflow, store: Store) -> None:
    findings = examine(store.root, airflow=airflow.url)
    found = {check: {f.state for f in findings if f.check == check} for check in ("store", "airflow")}
    assert found == {"store": {"ok"}, "airflow": {"ok"}}, findings
    # Not how late: a machine under load dates its answers late.
    assert any("Airflow's clock" in finding.says for finding in findings)


def test_only_those_who_are_logged_in(airflow: LocalAirflow, dag_runs: dict[str, str], bearer: dict[str, str]) -> None:
    query = {"dag_id": "shows", "run_id": dag_runs["sound"]}
    for headers in ({}, {"Cookie": "_token="}, {"Cookie": "session=1"}):
        assert ask(airflow, query, headers)[0] == 401
    assert ask(airflow, query, {"Authorization": "Bearer made.up.token"})[0] in (401, 403)
    assert ask(airflow, {"dag_id": "shows"})[0] == 401, "also before the question is looked at"
    status, text, policy = ask(airflow, query, bearer)
    assert status == 200 and "<html" in text[:200]
    assert policy.startswith("sandbox allow-scripts;") and "allow-same-origin" not in policy


def test_a_stranger_s_browser_sees_nothing(
    airflow: LocalAirflow, dag_runs: dict[str, str], runs: dict[str, Run], browser: Browser
) -> None:
    query = urlencode({"dag_id": "shows", "run_id": dag_runs["sound"]})
    opened = browser.open(f"{airflow.url}/damage-atlas/report?{query}")
    assert "Not authenticated" in opened.page.content() and runs["sound"].spec.run_id not in opened.page.content()
    opened.page.context.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unfinished", "stage report is not complete"),
        ("outside", "outside of the run"),
        ("above", "not a key"),
        ("changed", "is not what was sealed"),
        ("foreign", "is not a run of"),
        ("parent", "is not a run of"),
        ("dots", "is not a run of"),
        ("file", "a run's address ends in"),
        ("nul", "is not a run of"),
    ],
)
def test_what_is_not_this_run_s_report_is_refused(
    name: str, said: str, airflow: LocalAirflow, dag_runs: dict[str, str], bearer: dict[str, str]
) -> None:
    status, text, policy = ask(airflow, {"dag_id": "shows", "run_id": dag_runs[name]}, bearer)
    assert (status, said in text) == (404, True), text
    assert policy.startswith("sandbox"), "what the line quotes is not trusted either"


@pytest.mark.parametrize(
    "run_id", ["../../../etc/passwd", "", "no-such-run", "a\0b", "' OR 1=1 --", "%2e%2e%2f", "x" * 5000]
)
def test_hostile_names_of_runs_find_nothing(run_id: str, airflow: LocalAirflow, bearer: dict[str, str]) -> None:
    for dag_id in ("shows", "~", "../shows"):
        status, text, _ = ask(airflow, {"dag_id": dag_id, "run_id": run_id}, bearer)
        assert (status, "has opened no run" in text) == (404, True), text

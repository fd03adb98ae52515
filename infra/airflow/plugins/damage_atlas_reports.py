"""Reports inside Airflow: a tab on every DAG run that shows the report of the atlas run behind it.

The api-server reads the page from the store, compares it with its digest and sends it under a content security policy
that gives it an origin of its own: its scripts run, so the map answers, but they cannot use the reader's session,
ask the network for anything, or reach Airflow's page around them. Whoever may not see the DAG's runs gets 401 or 403.

Airflow loads this file in every one of its processes: what only the api-server needs is imported there.
"""

from __future__ import annotations

import json
import os
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from fastapi import FastAPI, Response

    from damage_atlas.store import Store

_REPOSITORY = Path(__file__).resolve().parents[3]
_PREFIX = "/damage-atlas"
# Within the sandbox an origin is "null", which 'self' does not mean: all that a page may load is inside it.
_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # the next person at this browser has to log in first
}


class DamageAtlasReports(AirflowPlugin):
    """The tab, and the route that it shows."""

    name = "damage_atlas_reports"
    # Without a leading slash: Airflow may be served below a path.
    external_views = [
        {
            "name": "Report",
            "href": f"{_PREFIX.lstrip('/')}/report?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "damage-atlas-report",
        }
    ]

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Asked for by the api-server alone."""
        return [{"name": "Damage Atlas reports", "app": report_app(), "url_prefix": _PREFIX}]


def report_app() -> FastAPI:
    """The application with the one route: ``report?dag_id=…&run_id=…``."""
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag
    from fastapi import Depends, FastAPI

    # No pages of its own documentation: those would be open to anyone.
    app = FastAPI(title="Damage Atlas reports", openapi_url=None)
    # In the query, not in the path: which characters run ids may hold is a setting of Airflow (allowed_run_id_pattern).
    app.get("/report", dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.RUN))])(report)
    return app


def report(dag_id: str, run_id: str) -> Response:
    """The report of the run that the DAG run opened, or a line that says why there is none."""
    from fastapi import Response

    from damage_atlas.errors import AtlasError

    try:
        return Response(_read_report(dag_id, run_id), media_type="text/html; charset=utf-8", headers=_HEADERS)
    except AtlasError as error:
        status = 503 if error.retryable else 404
        return Response(error.message, status, _HEADERS, media_type="text/plain; charset=utf-8")


def _read_report(dag_id: str, run_id: str) -> bytes:
    from damage_atlas.errors import ContractError, InputError
    from damage_atlas.store import Run

    run_uri = _opened_run(dag_id, run_id)
    if not isinstance(run_uri, str):
        raise InputError(
            "This DAG run has opened no run of an archive, so there is no report. Its first task does that."
        )
    run = Run.within(_store(), run_uri)
    if "report" not in run.spec.stages:
        raise InputError(f"{run_uri} is a {run.spec.kind} run; only runs that look at an archive write a report.")
    page = run.artifact("report").outputs["index.html"]
    if not page.key.startswith(f"{run.key}/report/"):
        raise ContractError(f"{run_uri}: its report is said to lie at {page.key}, outside of the run. Not shown.")
    return run.read("report", "index.html")


def _opened_run(dag_id: str, run_id: str) -> Any:
    """What the first task returned: the run's address. Read as JSON: Airflow's own reader may build any object."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    wanted = {"dag_id": dag_id, "run_id": run_id, "task_id": "open_run", "key": "return_value", "map_index": -1}
    if "\0" in run_id:
        return None  # PostgreSQL takes no such text
    with create_session() as session:
        value = session.scalar(select(XComModel.value).filter_by(**wanted))
    try:
        return json.loads(value) if isinstance(value, str) else None
    except ValueError:
        return value


@cache
def _store() -> Store:
    """The store that the DAGs use (``dags/atlas_flow.py``)."""
    from damage_atlas.store import Store

    return Store(os.environ.get("DAMAGE_ATLAS_STORE", str(_REPOSITORY / "var" / "store")))

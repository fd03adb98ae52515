"""Airflow's REST API as one person uses it: runs, their tasks, logs and results. HTTP only."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from infra.local.processes import LocalServiceError

USER = "admin"
FINISHED = frozenset({"success", "failed"})


class AirflowApi:
    """An Airflow at ``url``, with the password of its user ``admin``; errors say to look at ``logs``.

    Raises :class:`infra.local.processes.LocalServiceError` when a call is rejected, or when what is waited for does
    not come.
    """

    def __init__(self, url: str, password: str = "", logs: str = "its logs") -> None:
        self.url = url
        self.user = USER
        self.password = password
        self.logs = logs
        self._bearer = ""

    def check(self) -> None:
        """Called while something is waited for; raises when it can come no more."""

    def wait_for_dags(self, dag_ids: set[str], timeout_s: float = 180) -> None:
        """Returns when the scheduler knows these DAGs; raises with the import errors when it will not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check()
            if errors := self.get("/importErrors")["import_errors"]:
                told = "\n".join(f"{each['filename']}: {each['stack_trace']}" for each in errors)
                raise LocalServiceError(f"DAG files cannot be imported:\n{told}")
            if dag_ids <= {dag["dag_id"] for dag in self.get("/dags?limit=100")["dags"]}:
                return
            time.sleep(0.5)
        raise LocalServiceError(f"DAGs {sorted(dag_ids)} were not there within {timeout_s:.0f} s. Look at {self.logs}.")

    def trigger(
        self,
        dag_id: str,
        conf: Mapping[str, Any] | None = None,
        logical_date: datetime | None = None,
        run_id: str | None = None,
    ) -> str:
        """Unpauses the DAG, starts one run of it and returns its run id."""
        self.call("PATCH", f"/dags/{dag_id}", {"is_paused": False})
        body: dict[str, Any] = {
            "conf": dict(conf or {}),
            "logical_date": logical_date.isoformat() if logical_date else None,
        }
        if run_id:
            body["dag_run_id"] = run_id
        return str(self.call("POST", f"/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def pause(self, dag_id: str) -> None:
        """Switches the DAG off: neither its schedule nor an asset's event starts it."""
        self.call("PATCH", f"/dags/{dag_id}", {"is_paused": True})

    def end_unfinished_runs(self, dag_id: str) -> list[str]:
        """Marks runs as failed that an Airflow of this root left unfinished when it was stopped; returns their ids.

        A DAG of one run at a time would otherwise wait until their tasks are missed, which takes minutes.
        """
        runs = self.get(f"/dags/{dag_id}/dagRuns?state=running&state=queued&limit=100")["dag_runs"]
        ids = [str(each["dag_run_id"]) for each in runs]
        for run_id in ids:
            self.call("PATCH", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}", {"state": "failed"})
        return ids

    def delete_run(self, dag_id: str, run_id: str) -> None:
        """What a person does with "Mark run as failed" and then "Delete"; Airflow deletes no run that goes on."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"
        self.call("PATCH", path, {"state": "failed"})
        self.call("DELETE", path)

    def delete_dag(self, dag_id: str) -> None:
        """The bin beside a DAG's name: its runs and what is known of it are deleted."""
        self.call("DELETE", f"/dags/{dag_id}")

    def run_state(self, dag_id: str, run_id: str) -> str:
        """State of a run: queued, running, success or failed."""
        return str(self.get(f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run, as the REST API gives them (task_id, state, try_number, start_date, …)."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances?limit=1000"
        return list(self.get(path)["task_instances"])

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """State of every task of a run; a mapped task's id carries its index, as in ``task[3]``."""
        return {
            each["task_id"] + ("" if each["map_index"] < 0 else f"[{each['map_index']}]"): each["state"]
            for each in self.task_instances(dag_id, run_id)
        }

    def wait_for_run(self, dag_id: str, run_id: str, timeout_s: float) -> str:
        """The final state of a run; raises with the states of its tasks when it does not end in time."""
        deadline = time.monotonic() + timeout_s
        while (state := self.run_state(dag_id, run_id)) not in FINISHED:
            if time.monotonic() > deadline:
                raise LocalServiceError(
                    f"Run {run_id} of {dag_id} is {state} after {timeout_s:.0f} s: "
                    f"{self.task_states(dag_id, run_id)}. Look at {self.logs}."
                )
            self.check()
            time.sleep(0.5)
        return state

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """The log of one try, one line per event."""
        path = (
            f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/logs/{try_number}"
            f"?full_content=true&map_index={map_index}"
        )
        content = self.get(path)["content"]
        return "\n".join(_log_line(each) for each in content)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """Value of an XCom of an unmapped task."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.get(path + "?deserialize=true")["value"]

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """What a person does with "Mark as failed" or "Mark as success"."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}"
        self.call("PATCH", path, {"new_state": state})

    def clear_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """What a person does with "Clear": the task runs again."""
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": [task_id], "only_failed": False,
                "reset_dag_runs": True}  # fmt: skip
        self.call("POST", f"/dags/{dag_id}/clearTaskInstances", body)

    @property
    def bearer(self) -> dict[str, str]:
        """The header of a request by who is logged in."""
        self._bearer = self._bearer or self._log_in()
        return {"Authorization": f"Bearer {self._bearer}"}

    def get(self, path: str) -> dict[str, Any]:
        """GET of ``/api/v2`` + ``path``."""
        return self.call("GET", path)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One call of the public REST API; raises :class:`LocalServiceError` with the server's words."""
        # SQLite refuses a writer while another one writes; then nothing has been done, and it is asked again.
        patience = 10
        while True:
            bearer = self.bearer
            try:
                return self.http(method, f"/api/v2{path}", body, bearer)
            except urllib.error.HTTPError as error:
                if error.code == 401 and self._bearer:
                    self._bearer = ""
                said = error.read().decode(errors="replace")[:1000]
                if not (patience and error.code == 500 and "Database error" in said):
                    raise LocalServiceError(f"{method} {path} was answered with {error.code}: {said}") from None
                patience -= 1
                time.sleep(1)

    def _log_in(self) -> str:
        return str(self.http("POST", "/auth/token", {"username": self.user, "password": self.password})["access_token"])

    def http(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """One request below ``url``, without patience; raises as urllib does."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        request.headers.update({**(headers or {}), "Accept": "application/json"})
        # A proxy in the environment must not be asked for loopback.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
            return dict(json.loads(response.read() or b"{}"))


def _log_line(event: Any) -> str:
    if not isinstance(event, dict):
        return str(event)
    details = event.get("error_detail")
    return f"{event.get('timestamp') or ''} {event.get('event', '')}" + (f" {details}" if details else "")

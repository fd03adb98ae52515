"""An embedded Airflow on this machine: SQLite, LocalExecutor, four separate processes. Subprocesses only."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infra.local.processes import (
    LocalService,
    LocalServiceError,
    ProcessFamily,
    free_ports,
    uninterrupted,
    wait_until,
)

LOOPBACK = "127.0.0.1"
USER = "admin"
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
FINISHED = frozenset({"success", "failed"})


class LocalAirflow(LocalService):
    """``with LocalAirflow(root, dags) as airflow:`` starts Airflow on loopback and stops it at the end.

    ``root`` keeps the database, the secrets and the logs, so that the next start continues with the same runs.
    ``env`` is added to the environment of all components (``PYTHONPATH``, ``AIRFLOW_CONN_…``).
    Raises :class:`infra.local.processes.LocalServiceError` when it is not up within ``timeout_s``, or when the
    REST API rejects a call.
    """

    def __init__(
        self,
        root: Path,
        dags_folder: Path,
        plugins_folder: Path | None = None,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        timeout_s: float = 240,
    ) -> None:
        self.family = ProcessFamily(root)
        self.dags_folder = dags_folder.resolve()
        self.plugins_folder = (plugins_folder or self.family.root / "plugins").resolve()
        self.timeout_s = timeout_s
        self._extra_env = dict(env or {})
        self.port = port or free_ports(1)[0]
        self._secrets: dict[str, str] = {}
        self._bearer = ""

    @property
    def user(self) -> str:
        """Name to log in with."""
        return USER

    @property
    def url(self) -> str:
        """Where the UI and the REST API are."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def password(self) -> str:
        """Password of the user ``admin``."""
        return self._secrets["password"]

    def start(self) -> None:
        """Migrates the database, starts the four components, and returns when each reports itself healthy."""
        self.family.claim()
        self.plugins_folder.mkdir(parents=True, exist_ok=True)
        self._secrets = self._read_secrets()
        self.family.run("db-migrate", self._argv("db", "migrate"), self._env(), timeout_s=self.timeout_s)
        for component in COMPONENTS:
            self.start_component(component)
        for _ in wait_until("Airflow", self.timeout_s, self.family, poll_s=0.5):
            if self._healthy():
                break

    def start_component(self, component: str) -> None:
        """Starts one of :data:`COMPONENTS` without waiting for it."""
        extra = {
            "api-server": ["--host", LOOPBACK, "--port", str(self.port), "--workers", "1"],
            # The api-server reads the log files itself; log servers would listen on every interface.
            "scheduler": ["--skip-serve-logs"],
            "triggerer": ["--skip-serve-logs"],
        }
        self.family.start(component, self._argv(component, *extra.get(component, [])), self._env())

    def kill_component(self, component: str) -> None:
        """Kills one component at once, as a crash would (for trials)."""
        self.family.stop(component, hard=True)

    def stop(self) -> None:
        """Stops all components and the tasks they run."""
        with uninterrupted():
            # A task that still runs is killed, not waited for: its Ray job is stopped by whoever stops Ray.
            self.family.stop_all(grace_s=5)

    def wait_for_dags(self, dag_ids: set[str], timeout_s: float = 90) -> None:
        """Returns when the scheduler knows these DAGs; raises with the import errors when it will not."""
        for _ in wait_until(f"DAGs {sorted(dag_ids)}", timeout_s, self.family, poll_s=0.5):
            if errors := self.get("/importErrors")["import_errors"]:
                told = "\n".join(f"{each['filename']}: {each['stack_trace']}" for each in errors)
                raise LocalServiceError(f"DAG files in {self.dags_folder} cannot be imported:\n{told}")
            if dag_ids <= {dag["dag_id"] for dag in self.get("/dags?limit=100")["dags"]}:
                return

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
                    f"{self.task_states(dag_id, run_id)}. Look at the logs in {self.family.log_dir}."
                )
            self.family.check()
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
                return self._http(method, f"/api/v2{path}", body, bearer)
            except urllib.error.HTTPError as error:
                if error.code == 401 and self._bearer:
                    self._bearer = ""
                said = error.read().decode(errors="replace")[:1000]
                if not (patience and error.code == 500 and "Database error" in said):
                    raise LocalServiceError(f"{method} {path} was answered with {error.code}: {said}") from None
                patience -= 1
                time.sleep(1)

    def _log_in(self) -> str:
        return str(self._http("POST", "/auth/token", {"username": USER, "password": self.password})["access_token"])

    def _http(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        request.headers.update({**(headers or {}), "Accept": "application/json"})
        # A proxy in the environment must not be asked for loopback.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
            return dict(json.loads(response.read() or b"{}"))

    def _healthy(self) -> bool:
        """Whether every component reports a recent heartbeat and the API lets us in."""
        try:
            health = self._http("GET", "/api/v2/monitor/health")
            names = ("metadatabase", "scheduler", "triggerer", "dag_processor")
            # The API for tasks is loaded on its first call; the first task would wait for that.
            self._http("GET", "/execution/health")
            return all(health[name]["status"] == "healthy" for name in names) and bool(self.get("/dags?limit=1"))
        except (OSError, KeyError, ValueError):
            return False

    def _argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "airflow", *arguments]

    def _read_secrets(self) -> dict[str, str]:
        """The password and keys of this root, made at its first start; readable by their owner only."""
        path = self.family.root / "secrets.json"
        if not path.exists():
            made = {
                "password": secrets.token_urlsafe(12),
                "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "jwt_secret": secrets.token_urlsafe(64),
                "secret_key": secrets.token_urlsafe(32),
            }
            path.touch(mode=0o600)
            path.write_text(json.dumps(made))
        known: dict[str, str] = json.loads(path.read_text())
        passwords = self.family.root / "passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({USER: known["password"]}))
        return known

    def _env(self) -> dict[str, str]:
        root = self.family.root
        settings = {
            "CORE__DAGS_FOLDER": str(self.dags_folder),
            "CORE__PLUGINS_FOLDER": str(self.plugins_folder),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__PARALLELISM": "4",
            "CORE__FERNET_KEY": self._secrets["fernet_key"],
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(root / "passwords.json"),
            "API__BASE_URL": self.url,
            "API__HOST": LOOPBACK,
            "API__PORT": str(self.port),
            "API__WORKERS": "1",
            "API__SECRET_KEY": self._secrets["secret_key"],
            "API_AUTH__JWT_SECRET": self._secrets["jwt_secret"],
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{root / 'airflow.db'}",
            "LOGGING__BASE_LOG_FOLDER": str(self.family.log_dir / "tasks"),
            # Short tasks on few cores: look often, parse seldom and with one process.
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
            "DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            "DAG_PROCESSOR__PRINT_STATS_INTERVAL": "0",
            # The supervisor of a task may notice its end only after this interval.
            "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            # A triggerer that died is missed after these seconds; a busy machine must not look dead.
            "TRIGGERER__JOB_HEARTBEAT_SEC": "5",
            "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "30",
        }
        own = {f"AIRFLOW__{name}": value for name, value in settings.items()}
        env = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY", ""), LOOPBACK, "localhost"]))
        return {**env, "AIRFLOW_HOME": str(root), "PATH": path, "PYTHONUNBUFFERED": "1", "NO_PROXY": no_proxy,
                "no_proxy": no_proxy, **own, **self._extra_env}  # fmt: skip


def _log_line(event: Any) -> str:
    if not isinstance(event, dict):
        return str(event)
    details = event.get("error_detail")
    return f"{event.get('timestamp') or ''} {event.get('event', '')}" + (f" {details}" if details else "")

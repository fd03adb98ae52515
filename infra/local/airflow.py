"""An embedded Airflow on this machine: SQLite or a given database, LocalExecutor, four processes. Subprocesses only."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from infra.local.airflow_api import USER, AirflowApi
from infra.local.processes import LocalService, ProcessFamily, free_ports, uninterrupted, wait_until

LOOPBACK = "127.0.0.1"
logger = logging.getLogger(__name__)

# What the scheduler says last when a run is deleted while it writes, or reads, that run's state.
_RUN_DELETED = ("StaleDataError: UPDATE statement on table 'dag_run'", "ObjectDeletedError: Instance '<DagRun")
_END_OF_LOG = 4000  # bytes
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")


class LocalAirflow(AirflowApi, LocalService):
    """``with LocalAirflow(root, dags) as airflow:`` starts Airflow on loopback and stops it at the end.

    ``root`` keeps the database, the secrets and the logs, so that the next start continues with the same runs.
    ``env`` is added to the environment of all components (``PYTHONPATH``, ``AIRFLOW_CONN_…``).
    ``database`` is an address for SQLAlchemy; by default a file of SQLite's below ``root``.
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
        database: str | None = None,
    ) -> None:
        self.family = ProcessFamily(root)
        self._database = database or f"sqlite:///{self.family.root / 'airflow.db'}"
        self.dags_folder = dags_folder.resolve()
        self.plugins_folder = (plugins_folder or self.family.root / "plugins").resolve()
        self.timeout_s = timeout_s
        self._extra_env = dict(env or {})
        self.port = port or free_ports(1)[0]
        self._secrets: dict[str, str] = {}
        self._scheduler_log_at = 0
        super().__init__(f"http://{LOOPBACK}:{self.port}", logs=str(self.family.log_dir))

    def start(self) -> None:
        """Migrates the database, starts the four components, and returns when each reports itself healthy."""
        self.family.claim()
        self.plugins_folder.mkdir(parents=True, exist_ok=True)
        self._secrets = self._read_secrets()
        self.password = self._secrets["password"]
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
        log = self.family.log_path(component)
        if component == "scheduler":
            self._scheduler_log_at = log.stat().st_size if log.exists() else 0
        self.family.start(component, self._argv(component, *extra.get(component, [])), self._env())

    def kill_component(self, component: str) -> None:
        """Kills one component at once, as a crash would (for trials)."""
        self.family.stop(component, hard=True)

    def task_processes(self) -> list[psutil.Process]:
        """The executor's processes that run a task now, and what is below them: Airflow's workers.

        Not the idle ones: one of them holds the lock of their common queue, and CPython never frees the lock of a
        process that was killed. After such a kill the scheduler itself must be started again.
        """
        busy: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.family.pid("scheduler")).children():
                with contextlib.suppress(psutil.Error):
                    title = " ".join(process.cmdline())
                    if "LocalExecutor: " in title and "<idle>" not in title:
                        busy += [process, *process.children(recursive=True)]
        return busy

    def stop(self) -> None:
        """Stops all components and the tasks they run."""
        with uninterrupted():
            # A task that still runs is killed, not waited for: its Ray job is stopped by whoever stops Ray.
            self.family.stop_all(grace_s=5)

    def check(self) -> None:
        """Raises when a component has died; but a scheduler under whose hands a run was deleted is started again.

        It then ends by itself (apache/airflow#25117, #63926), and elsewhere whatever looks after it starts it again.
        """
        ended = self.family.exit_code("scheduler") is not None
        if ended and any(said in self._said_by_scheduler() for said in _RUN_DELETED):
            logger.warning("Airflow's scheduler ended, since a run was deleted under its hands: it is started again")
            self.start_component("scheduler")
        self.family.check()

    def _said_by_scheduler(self) -> str:
        """The end of what it has logged since it was started last."""
        log = self.family.log_path("scheduler").read_bytes()[self._scheduler_log_at :]
        return log[-_END_OF_LOG:].decode(errors="replace")

    def _healthy(self) -> bool:
        """Whether every component reports a recent heartbeat and the API lets us in."""
        try:
            health = self.http("GET", "/api/v2/monitor/health")
            names = ("metadatabase", "scheduler", "triggerer", "dag_processor")
            # The API for tasks is loaded on its first call; the first task would wait for that.
            self.http("GET", "/execution/health")
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
            "CORE__DAGBAG_IMPORT_TIMEOUT": "120",  # of a cold start on two busy cores
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
            "DATABASE__SQL_ALCHEMY_CONN": self._database,
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

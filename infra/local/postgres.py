"""A private PostgreSQL on this machine, for an embedded Airflow that several processes write to. Subprocesses only."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from infra.local.processes import LocalService, LocalServiceError, ProcessFamily, free_ports, uninterrupted, wait_until

LOOPBACK = "127.0.0.1"
USER = DATABASE = "airflow"


class LocalPostgres(LocalService):
    """``with LocalPostgres(root) as postgres:`` starts an empty server on loopback; at the end its data are deleted.

    ``root`` keeps the log. PostgreSQL's programs have to be installed; as root they run as the user ``postgres``,
    because PostgreSQL refuses to be root. Raises :class:`infra.local.processes.LocalServiceError` when they are
    missing, or when the server is not up within ``timeout_s``.
    """

    def __init__(self, root: Path, timeout_s: float = 60) -> None:
        self.family = ProcessFamily(root)
        self.timeout_s = timeout_s
        self.port = free_ports(1)[0]
        self._password = secrets.token_urlsafe(24)
        self._data: Path | None = None

    @property
    def data(self) -> Path:
        """Folder of its data while it runs."""
        assert self._data is not None, "it is not running"
        return self._data

    @property
    def url(self) -> str:
        """The database's address for SQLAlchemy."""
        return f"postgresql+psycopg2://{USER}:{self._password}@{LOOPBACK}:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Makes a cluster of databases, starts its server and returns when it takes connections."""
        found = programs()
        self.family.claim()
        # Not below the root: whoever PostgreSQL runs as may not be let in there.
        self._data = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
        password_file = self._data / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        prefix: list[str] = []
        if os.geteuid() == 0:
            owner = _unprivileged()
            prefix = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups", "--"]
            for path in (self._data, password_file):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        data = str(self._data / "data")
        made = [str(found / "initdb"), "-D", data, "-U", USER, "--auth=scram-sha-256", "--encoding=UTF8",
                f"--pwfile={password_file}"]  # fmt: skip
        self.family.run("initdb", prefix + made, os.environ, timeout_s=self.timeout_s)
        password_file.unlink()
        served = ["-D", data, "-h", LOOPBACK, "-p", str(self.port), "-k", str(self._data)]
        self.family.start("postgres", [*prefix, str(found / "postgres"), *served], os.environ)
        self._wait(found)
        created = [str(found / "createdb"), "-h", LOOPBACK, "-p", str(self.port), "-U", USER, DATABASE]
        self.family.run("createdb", created, os.environ | {"PGPASSWORD": self._password}, timeout_s=self.timeout_s)

    def stop(self) -> None:
        """Stops the server and deletes its data."""
        with uninterrupted():
            self.family.stop_all()
            if self._data is not None:
                shutil.rmtree(self._data, ignore_errors=True)
                self._data = None

    def _wait(self, found: Path) -> None:
        asked = [str(found / "pg_isready"), "-q", "-h", LOOPBACK, "-p", str(self.port)]
        for _ in wait_until("PostgreSQL", self.timeout_s, self.family):
            if subprocess.run(asked, check=False).returncode == 0:
                return


def programs() -> Path:
    """The folder of the newest PostgreSQL's programs; Debian keeps them off the PATH.

    Raises:
        LocalServiceError: there is none.
    """
    if (named := shutil.which("initdb")) is not None:
        return Path(named).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not versions:
        raise LocalServiceError("PostgreSQL is not installed here: no initdb is on the PATH or where Debian puts it.")
    return versions[-1].parent


def _unprivileged() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        raise LocalServiceError("PostgreSQL refuses to run as root, and there is no user postgres here.") from None

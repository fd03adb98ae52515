"""The team set-up of docker-compose.yml, brought up from a copy of this checkout under a project name of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.local.airflow_api import AirflowApi
from infra.local.processes import free_ports
from infra.local.stack import REPOSITORY

PROJECT = "damage-atlas-test"
ONCE = frozenset({"s3-bucket", "airflow-init"})  # services that end when their work is done
# Settings of a stack that runs here for real; this one must not take them over.
_NOT_OURS = ("IMAGES_FOLDER", "COMPOSE_PROFILES", "AIRFLOW_METRICS", "DAMAGE_ATLAS_NOTIFIERS", "DAMAGE_ATLAS_GPU_POOL")


class ComposeStack:
    """Containers, volumes and network of project :data:`PROJECT`; :meth:`remove` takes them all away.

    The files lie in ``folder``, which is what somebody has who cloned the repository: no environment, no ``.env``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: set[str] = set()
        port = free_ports(1)[0]
        self.env = {key: value for key, value in os.environ.items() if key not in _NOT_OURS}
        self.env |= {"COMPOSE_PROJECT_NAME": PROJECT, "AIRFLOW_PORT": str(port)}
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
        self._command = ["docker", "compose"] if plugin else ["docker-compose"]
        self.airflow = AirflowApi(f"http://127.0.0.1:{port}", logs="docker compose logs")

    def take_files(self, revision: str | None = None) -> None:
        """Put the tracked files of this checkout into ``folder``, or those of another revision.

        As git does it: a folder that stays is the same one, for containers have it mounted. What git does not track is
        left alone.
        """
        tree = ["git", "ls-files"] if revision is None else ["git", "ls-tree", "-r", "--name-only", revision]
        names = [name for name in _output(tree, REPOSITORY).splitlines() if revision or (REPOSITORY / name).is_file()]
        for gone in self._files - set(names):
            (self.folder / gone).unlink()
        self._files = set(names)
        self.folder.mkdir(exist_ok=True)
        if revision is None:
            for name in names:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, self.folder / name)
        else:
            packed = subprocess.run(
                ["git", "-c", "tar.umask=0022", "archive", revision], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True
            )
            subprocess.run(["tar", "-x"], cwd=self.folder, input=packed.stdout, check=True)

    def up(self) -> None:
        """``make up``: returns when every service is healthy."""
        subprocess.run(["make", "up"], cwd=self.folder, env=self.env, check=True)
        self.airflow.password = self.setting("AIRFLOW_ADMIN_PASSWORD")

    def down(self) -> None:
        """``make down``: containers go, volumes stay."""
        subprocess.run(["make", "down"], cwd=self.folder, env=self.env, check=True)

    def remove(self) -> None:
        """Containers, network and volumes, also those of a run that was killed: its ``.env`` is gone."""
        ours = f"label=com.docker.compose.project={PROJECT}"
        for list_them, remove_them in (
            (["ps", "-aq"], ["rm", "--force", "--volumes"]),
            (["volume", "ls", "-q"], ["volume", "rm"]),
            (["network", "ls", "-q"], ["network", "rm"]),
        ):
            if found := _output(["docker", *list_them, "--filter", ours], REPOSITORY, self.env).split():
                _output(["docker", *remove_them, *found], REPOSITORY, self.env)

    def setting(self, name: str) -> str:
        """A value of ``.env``."""
        lines = dict(line.split("=", 1) for line in (self.folder / ".env").read_text().splitlines() if "=" in line)
        return lines[name]

    def compose(self, *arguments: str, stdin: str | None = None) -> str:
        """Standard output of a docker compose command."""
        return _output([*self._command, *arguments], self.folder, self.env, stdin)

    def python(self, service: str, code: str) -> str:
        """Standard output of a Python program inside a service."""
        return self.compose("exec", "-T", service, "python", "-", stdin=code)

    @property
    def services(self) -> list[str]:
        """Services that stay up; by their containers, since docker-compose 1.29 also names what no profile asks for."""
        ours = f"label=com.docker.compose.project={PROJECT}"
        word = '{{.Label "com.docker.compose.service"}}'
        return sorted(
            set(_output(["docker", "ps", "-a", "--filter", ours, "--format", word], self.folder).split()) - ONCE
        )

    def container(self, service: str) -> str:
        """Id of a service's container, running or not."""
        return self.compose("ps", "-q", "-a", service).split()[0]

    def health(self, service: str) -> str:
        """Docker's word: starting, healthy, unhealthy; or that the container does not run."""
        template = "{{if .State.Running}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}"
        return _output(
            ["docker", "inspect", "--format", template, self.container(service)], self.folder, self.env
        ).strip()

    def kill(self, service: str) -> None:
        """The container is gone at once, and stays away: to the engine it was stopped on purpose."""
        _output(["docker", "kill", self.container(service)], self.folder, self.env)


def until(ready: Callable[[], Any], what: str, timeout_s: float, poll_s: float = 1.0) -> Any:
    """What ``ready`` returns as soon as it is true; a service that does not answer in the meantime is asked again."""
    deadline = time.monotonic() + timeout_s
    problem = "never"
    while time.monotonic() < deadline:
        try:
            if found := ready():
                return found
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            problem = str(error)
        time.sleep(poll_s)
    raise AssertionError(f"waited {timeout_s:.0f} s for {what}: {problem}")


def _output(argv: list[str], folder: Path, env: dict[str, str] | None = None, stdin: str | None = None) -> str:
    done = subprocess.run(
        argv, cwd=folder, env=env, input=stdin or "", capture_output=True, text=True, check=False, timeout=900
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return done.stdout

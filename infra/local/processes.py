"""Starts and stops families of processes so that none survives. Knows neither Ray nor Airflow."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Self

import psutil  # type: ignore[import-untyped]

MARK = "DAMAGE_ATLAS_LOCAL"


class LocalServiceError(RuntimeError):
    """A local service did not start, died, or did not answer; the message says which log to read."""


class NotReadyInTime(LocalServiceError):
    """A local service lives, but is not ready within its time."""


def free_ports(count: int) -> list[int]:
    """``count`` different loopback TCP ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def commands(*words: str) -> list[psutil.Process]:
    """Processes whose command line holds all the words, this one left out."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if all(word in line for word in words) and process.pid != os.getpid():
            found.append(process)
    return found


class ProcessFamily:
    """Named child processes under one root folder, each with its log, stopped together with all descendants.

    ``root`` names the family: the same root can be started only once at a time, and what an earlier, killed
    owner of the same root left running is stopped before anything new starts.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.log_dir = self.root / "logs"
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: set[psutil.Process] = set()

    def claim(self) -> None:
        """Makes this process the owner of the root; stops leftovers of an owner that is gone."""
        owner = self.root / "owner.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            pid, created = owner.read_text().split()
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(created)) < 1 and process.pid != os.getpid():
                raise LocalServiceError(
                    f"{self.root} is in use by process {pid}. Stop that process, or use another folder."
                )
        me = psutil.Process()
        owner.write_text(f"{me.pid} {me.create_time()}")
        self._kill(self._marked(), grace_s=2)

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Starts ``argv`` in its own session, output appended to ``logs/<name>.log``."""
        with self.log_path(name).open("ab") as log:
            self._children[name] = subprocess.Popen(
                argv,
                env={**env, MARK: str(self.root)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A terminal sends Ctrl-C to its whole group: the children must hear it from us, in order.
                start_new_session=True,
            )

    def run(self, name: str, argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> None:
        """Runs ``argv`` to its end; raises :class:`LocalServiceError` unless it exits with 0 in time."""
        self.start(name, argv, env)
        try:
            code = self._children[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LocalServiceError(f"{name} did not end within {timeout_s:.0f} s. {self.tail(name)}") from None
        finally:
            self.stop(name)
        if code != 0:
            raise LocalServiceError(f"{name} ended with exit code {code}. {self.tail(name)}")

    def names(self) -> list[str]:
        """What the children are called, in the order of their start."""
        return list(self._children)

    def pid(self, name: str) -> int:
        """Process id of the child called ``name``."""
        return self._children[name].pid

    def exit_code(self, name: str) -> int | None:
        """How the child called ``name`` has ended; None while it runs, or where there is none."""
        child = self._children.get(name)
        return None if child is None else child.poll()

    def check(self) -> None:
        """Raises :class:`LocalServiceError` when a child has ended."""
        for name, child in self._children.items():
            if (code := child.poll()) is not None:
                raise LocalServiceError(f"{name} ended with exit code {code}. {self.tail(name)}")

    def log_path(self, name: str) -> Path:
        """The file with the output of the child called ``name``."""
        return self.log_dir / f"{name}.log"

    def tail(self, name: str, lines: int = 8) -> str:
        """Where the log of ``name`` lies and how it ends, for error messages."""
        path = self.log_path(name)
        last = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
        return f"Look at {path}; it ends with:\n" + "\n".join(last)

    def stop(self, name: str, grace_s: float = 5, hard: bool = False) -> None:
        """Stops one child and its descendants; ``hard`` sends SIGKILL at once (for trials of crashes)."""
        child = self._children.pop(name)
        family = self._descendants(child.pid)
        self._kill(family, grace_s=0 if hard else grace_s, polite=None if hard else {child.pid})
        child.wait()

    def stop_all(self, grace_s: float = 8) -> None:
        """Stops every child, in the reverse order of start, with all descendants. Safe to call twice."""
        children, self._children = self._children, {}
        family = self._marked()
        for child in children.values():
            family |= self._descendants(child.pid)
        self._kill(family, grace_s, polite={child.pid for child in children.values()})
        for child in children.values():
            child.wait()
        # What was born while the others were dying.
        self._kill(self._marked() | self._orphans(), grace_s=0)
        (self.root / "owner.pid").unlink(missing_ok=True)

    def _kill(self, family: set[psutil.Process], grace_s: float, polite: set[int] | None = None) -> None:
        """SIGTERM to the ``polite`` pids (default: all), SIGKILL to whatever is left after ``grace_s``."""
        self._seen |= family
        if grace_s > 0:
            for process in family:
                if polite is None or process.pid in polite:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.terminate()
            psutil.wait_procs(family, timeout=grace_s)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=5)

    def _descendants(self, pid: int) -> set[psutil.Process]:
        # The title that a process gives itself may overwrite its environment, so the tree and the session
        # are asked as well as the mark.
        found: set[psutil.Process] = set()
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found = {process, *process.children(recursive=True)}
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getsid(process.pid) == pid:
                    found.add(process)
        return found

    def _orphans(self) -> set[psutil.Process]:
        """Processes whose session was opened by somebody we have seen in the family."""
        sessions = {process.pid for process in self._seen}
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getsid(process.pid) in sessions and process.pid != os.getpid():
                    found.add(process)
        return found

    def _marked(self) -> set[psutil.Process]:
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and process.environ().get(MARK) == str(self.root):
                    found.add(process)
        return found


class LocalService:
    """A service that is up inside its ``with`` block; a start that fails, or SIGTERM, leaves nothing running."""

    _stack: contextlib.ExitStack

    def start(self) -> None:
        """Starts the service and returns when it is ready."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stops it, with all that it has started; safe to call twice."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(terminate_as_exit())
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._stack.close()


@contextlib.contextmanager
def terminate_as_exit() -> Iterator[None]:
    """Within this block SIGTERM and SIGHUP raise ``SystemExit``, so that ``finally`` and ``with`` clean up.

    Only the main thread may set signal handlers; elsewhere the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Within this block Ctrl-C and SIGTERM are ignored: a second Ctrl-C must not leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_until(ready: str, timeout_s: float, family: ProcessFamily, poll_s: float = 0.25) -> Iterator[float]:
    """Yields the seconds waited until the caller breaks out; raises when a child dies or time is up.

    ``ready`` names what is awaited, for the error message.
    """
    begin = time.monotonic()
    while (waited := time.monotonic() - begin) < timeout_s:
        family.check()
        yield waited
        time.sleep(poll_s)
    raise LocalServiceError(f"{ready} was not there within {timeout_s:.0f} s. Look at the logs in {family.log_dir}.")

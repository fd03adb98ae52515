"""One-machine OpenStack Swift, run as a child process by `s3_server.S3Server`; never imported by a test.

Swift pulls in eventlet, which patches sockets and threads of whoever imports it: a test process must stay free
of it. Command line: ``python swift_node.py FOLDER PROXY ACCOUNT CONTAINER OBJECT`` with four ports on loopback.
Swift is imported once, then forked into its four servers, so the node is up in a few seconds.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import secrets
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

FRONT = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk")
BEHIND_LOGIN = ("slo", "dlo", "versioned_writes", "symlink")
WRITES = frozenset({"PUT", "POST", "DELETE"})
PR_SET_PDEATHSIG = 1  # linux/prctl.h
BACKENDS = ("account", "container", "object")


class KeyLock:
    """WSGI filter: one write at a time for each key.

    Swift looks for an existing object and stores the new one in two steps, so two puts with ``If-None-Match: *``
    may both find nothing. One after the other, the second one finds the first and answers 412.
    """

    def __init__(self, app: WsgiApp) -> None:
        self.app = app
        self.locks: dict[str, tuple[Any, int]] = {}  # key -> semaphore, how many hold it or wait for it

    @contextmanager
    def held(self, key: str) -> Iterator[None]:
        from eventlet.semaphore import Semaphore

        lock, users = self.locks.get(key) or (Semaphore(1), 0)
        self.locks[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            lock, users = self.locks.pop(key)
            if users > 1:
                self.locks[key] = (lock, users - 1)

    def __call__(self, env: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if env["REQUEST_METHOD"] not in WRITES:
            return self.app(env, start_response)
        with self.held(env["PATH_INFO"]):
            return self.app(env, start_response)


def key_lock_factory(global_conf: dict[str, str], **_: str) -> Callable[[WsgiApp], KeyLock]:
    """Entry point named in the proxy's configuration."""
    return KeyLock


def write_configuration(folder: Path, ports: dict[str, int], access_key: str, secret_key: str) -> None:
    """Write swift.conf and one configuration per server; an existing node keeps its hash suffix."""
    account, user = access_key.split(":")
    common = (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nswift_dir = {folder}\ndevices = {folder / 'devices'}\n"
        f"user = {pwd.getpwuid(os.getuid()).pw_name}\nworkers = 0\nlog_level = WARNING\n"
        "mount_check = false\ndisable_fallocate = true\n"
        # The default keeps 1% of the disk free, which on a full machine refuses every write.
        "fallocate_reserve = 0\n"
    )
    if not (folder / "swift.conf").exists():
        suffix = secrets.token_hex(8)
        (folder / "swift.conf").write_text(f"[swift-hash]\nswift_hash_path_suffix = {suffix}\n")
    for kind in BACKENDS:
        (folder / f"{kind}.conf").write_text(
            f"{common}bind_port = {ports[kind]}\n"
            f"[pipeline:main]\npipeline = {kind}-server\n"
            f"[app:{kind}-server]\nuse = egg:swift#{kind}\n"
            # Later than this, a listing is brought up to date by a daemon that does not run here.
            "container_update_timeout = 60\nnode_timeout = 60\nconn_timeout = 10\n"
        )
    filters = (*FRONT, "s3api", *BEHIND_LOGIN)
    pipeline = " ".join((*FRONT, "lock", "s3api", "tempauth", *BEHIND_LOGIN, "proxy-server"))
    (folder / "proxy.conf").write_text(
        f"{common}bind_port = {ports['proxy']}\n"
        f"[pipeline:main]\npipeline = {pipeline}\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
        "node_timeout = 60\nrecoverable_node_timeout = 60\nconn_timeout = 10\n"
        f"[filter:lock]\npaste.filter_factory = {Path(__file__).stem}:key_lock_factory\n"
        f"[filter:tempauth]\nuse = egg:swift#tempauth\nuser_{account}_{user} = {secret_key} .admin\n"
        + "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in filters)
    )


def write_rings(folder: Path, ports: dict[str, int]) -> None:
    """One device, one replica, no redundancy: everything on this machine's disk."""
    from swift.common.ring import RingBuilder

    (folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
    for kind in BACKENDS:
        builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
        place = {"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": ports[kind]}
        builder.add_dev(place | {"device": "disk", "weight": 1.0})
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends, so that a killed test run leaves nothing behind."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(folder: Path, ports: dict[str, int]) -> int:
    """Fork the four servers and wait; the first that ends takes the others with it."""
    from swift.common.wsgi import run_wsgi

    kinds = (*BACKENDS, "proxy")
    children = []
    for kind in kinds:
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            os._exit(run_wsgi(str(folder / f"{kind}.conf"), f"{kind}-server", verbose=True) or 0)
        children.append(pid)
    pid, status = os.wait()
    print(f"swift_node: the {kinds[children.index(pid)]} server ended with {status}", file=sys.stderr)
    return 1  # the remaining servers die with this process


def main() -> int:
    folder = Path(sys.argv[1])
    ports = dict(zip(("proxy", *BACKENDS), map(int, sys.argv[2:6]), strict=True))
    die_with_parent()
    write_configuration(folder, ports, os.environ["SWIFT_ACCESS_KEY"], os.environ["SWIFT_SECRET_KEY"])
    write_rings(folder, ports)
    return serve(folder, ports)


if __name__ == "__main__":
    sys.exit(main())

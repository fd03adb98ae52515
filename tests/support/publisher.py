"""Processes that publish to one archive, or read from it, at the same time as others.

``python -m tests.support.publisher publish STORE NAME LAST`` publishes runs one after the other until version LAST is
there; ``read STORE PAUSE_S`` verifies the current version again and again until a line arrives on its standard input.
Both print a JSON object of what they met.
"""

from __future__ import annotations

import json
import select
import sys
from typing import Any

from damage_atlas.contracts import Ledger
from damage_atlas.errors import PublishConflictError
from damage_atlas.publish import publish_run, verify_run
from damage_atlas.query import published_run
from damage_atlas.spec import RunSpec
from damage_atlas.store import Run, Store, current_version, list_versions, open_run, read_version

ARCHIVE = "bridge"


def open_on_current(store: Store, run_id: str) -> Run:
    """A run on top of what is current now."""
    spec = RunSpec(
        run_id=run_id, kind="recluster", archive=ARCHIVE, images="/images", model="m", model_version="v1",
        previous_version=current_version(store, ARCHIVE),
    )  # fmt: skip
    return open_run(store, spec)


def seal_all(run: Run, deliveries: tuple[str, ...] = ()) -> None:
    """Every stage but publish, each with an output that only this run has."""
    facts: dict[str, dict[str, Any]] = {
        "catalog": {"deliveries": list(deliveries)},
        "embed": {"ledger": Ledger(listed=1, embedded=1).model_dump(), "model": "m@v1"},
        "cluster": {"clusters": 1, "next_cluster_id": 2},
    }
    done: tuple[str, ...] = ()
    for name in run.spec.stages[:-1]:
        stage = run.stage(name)
        stage.write("index.html" if name == "report" else "table.bin", f"{run.spec.run_id} {name}".encode() * 100)
        stage.seal(done[-1:], {"in": 1, "out": 1, "failed": 0}, facts.get(name))
        done = (*done, name)


def publish(store: Store, name: str, last: int) -> dict[str, Any]:
    """What this process has published, and how it was refused."""
    published: dict[str, str] = {}
    refusals: list[str] = []
    number = 0
    while (current_version(store, ARCHIVE) or 0) < last:
        number += 1
        run = open_on_current(store, f"{name}-{number}")
        seal_all(run)
        try:
            published[str(publish_run(run).facts["version"])] = run.spec.run_id
        except PublishConflictError as error:
            refusals.append(error.message)
    return {"published": published, "refusals": refusals}


def read(store: Store, pause_s: float) -> dict[str, Any]:
    """How often a version was verified, which ones, and everything that was wrong with any."""
    problems: list[str] = []
    seen: list[int] = []
    looks = 0
    while not select.select([sys.stdin], [], [], pause_s)[0]:
        numbers = list_versions(store, ARCHIVE)
        if numbers != list(range(1, len(numbers) + 1)):
            problems.append(f"versions {numbers}")
        if not numbers:
            continue
        looks += 1
        record = read_version(store, ARCHIVE)
        if seen and record.version < seen[-1]:
            problems.append(f"version {record.version} after {seen[-1]}")
        seen += [record.version] if record.version not in seen[-1:] else []
        run = published_run(store, ARCHIVE, record.version)
        problems += [f"version {record.version}: {problem}" for problem in verify_run(run)]
        if run.read("report", "index.html") != f"{record.run_id} report".encode() * 100:
            problems.append(f"version {record.version} has another run's report")
    return {"looks": looks, "seen": seen, "problems": problems}


if __name__ == "__main__":
    what, root, *rest = sys.argv[1:]
    store = Store(root)
    print(json.dumps(publish(store, rest[0], int(rest[1])) if what == "publish" else read(store, float(rest[0]))))

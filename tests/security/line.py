"""Run by the tests of this folder in a process of its own: a small archive from training to two published versions on
the store of the environment, and what people ask of it; prints what was unpickled, and what the store was asked for.

    python -m tests.security.line FOLDER STORE
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

unpickled: list[str] = []
requests: set[tuple[str, str, str, bool]] = set()  # who, operation, key, only if absent
role = ""


def be(who: str) -> None:
    """From here on what is asked is asked by ``who``, with keys of its own where the environment has them."""
    global role
    role = who
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if f"{who.upper()}_{name}" in os.environ:
            os.environ[name] = os.environ[f"{who.upper()}_{name}"]


def hear(event: str, arguments: tuple[Any, ...]) -> None:
    """What an unpickler looks up is what it would run."""
    if event == "pickle.find_class":
        unpickled.append(".".join(map(str, arguments[:2])))


def note(model: Any, params: dict[str, Any], **_: Any) -> None:
    path = unquote(urlsplit(params["url"]).path).lstrip("/").partition("/")[2]
    prefix = params["query_string"].get("prefix", "") if model.name == "ListObjectsV2" else path
    requests.add((role, model.name, prefix, "If-None-Match" in params["headers"]))


def main(folder: Path, root: str) -> None:
    sys.addaudithook(hear)
    # The hook hears: else its silence would mean nothing.
    pickle.Unpickler(io.BytesIO(pickle.dumps(Path))).load()
    assert unpickled == ["pathlib.Path"]
    unpickled.clear()

    from damage_atlas import monitor, query
    from damage_atlas.doctor.store import check_store
    from damage_atlas.forget import forget
    from damage_atlas.pipeline import run_pipeline
    from damage_atlas.publish import rollback, verify_run
    from damage_atlas.store import Run, Store, objects, start_run
    from damage_atlas.store.retention import prune
    from tests.support.published import steps

    opened = objects._S3Backend.__init__

    def watch(self: Any, bucket: str, prefix: str) -> None:
        opened(self, bucket, prefix)
        self._client.meta.events.register("before-call.s3", note)

    objects._S3Backend.__init__ = watch  # type: ignore[method-assign]
    for step in steps(folder):
        be("airflow")
        uri = start_run(Store(root), **step).uri
        be("workers")
        list(run_pipeline(Run.load(uri)))
    be("airflow")
    start_run(Store(root), **step | {"run_id": "20200101T000000Z"})
    now = datetime.now(UTC)
    print(prune(Store(root), "small", 30, now=now), prune(Store(root), "small", 30, now=now + timedelta(days=2)))
    be("readers")
    store = Store(root)
    print(monitor.metrics_text(store))
    print(query.history(store, "small"), query.show(query.published_run(store, "small")))
    print(query.search(store, "small", next((folder / "archive").rglob("*.png")), 3))
    print(query.near_duplicates(store, "small"), query.diff(store, "small", 1, 2))
    print(query.failed(query.published_run(store, "small")), verify_run(query.published_run(store, "small")))
    be("maintainers")
    store = Store(root)
    print(list(check_store(root, {})))
    rollback(query.published_run(store, "small", 1))
    print(forget(store, "small", "d1/asset-0/across-000.png", "a face"))
    print("HEARD " + json.dumps({"unpickled": unpickled, "requests": sorted(requests)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

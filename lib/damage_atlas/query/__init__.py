"""Questions to a published version: nearest images, near-duplicates, what changed between versions, what failed.

published.py    what a version holds, loaded once
nearest.py      search, with its filters
duplicates.py   groups of images that are nearly the same
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from damage_atlas.contracts import Remarks
from damage_atlas.errors import InputError
from damage_atlas.metrics import agreement
from damage_atlas.query.duplicates import near_duplicates
from damage_atlas.query.nearest import search
from damage_atlas.query.published import published_run
from damage_atlas.store import Run, Store, list_versions, read_version
from damage_atlas.store.remarks import read_remarks

__all__ = ["cluster_history", "diff", "failed", "history", "near_duplicates", "published_run", "search", "show"]


def history(store: Store, archive: str) -> list[dict[str, Any]]:
    """One row for each version, oldest first."""
    records = [read_version(store, archive, number) for number in list_versions(store, archive)]
    return [
        {
            "version": r.version,
            "action": r.action,
            "published_at": r.published_at.isoformat(timespec="seconds"),
            "run_id": r.run_id,
            "listed": r.ledger.listed,
            "embedded": r.ledger.embedded,
            "reused": r.ledger.reused,
            "duplicate": r.ledger.duplicate,
            "quarantined": r.ledger.quarantined,
            "clusters": r.clusters,
        }
        for r in records
    ]


def cluster_history(store: Store, archive: str, cluster: int) -> dict[str, Any]:
    """What became of one cluster and what people have said of it.

    Returns:
        cluster_id, name, severity, events (the ledger's rows that name it) and remarks, both oldest first.

    Raises:
        InputError: no version up to the current one has had such a cluster.
    """
    run = published_run(store, archive)
    if "ledger.parquet" not in run.artifact("cluster").outputs:
        raise InputError(f"{run.uri} is older than the ledger of clusters. Run the archive again.")
    ledger = run.read_table("cluster", "ledger.parquet").to_pylist()
    rows = [row for row in ledger if cluster in (row["from_cluster_id"], row["to_cluster_id"])]
    if not rows:
        raise InputError(f"{archive} has had no cluster {cluster}. `damage-atlas show RUN` says where its tables lie.")
    remarks = Remarks(remarks=read_remarks(store, archive))
    return {
        "cluster_id": cluster,
        "name": remarks.name(cluster),
        "severity": remarks.severity(cluster),
        "events": rows,
        "remarks": [remark.model_dump(mode="json") for remark in remarks.of(cluster)],
    }


def diff(store: Store, archive: str, a: int, b: int) -> dict[str, Any]:
    """What differs between versions ``a`` and ``b``: images, clusters, and how far the clusterings agree."""
    first, second = (published_run(store, archive, n).read_table("cluster", "points.parquet") for n in (a, b))
    old = dict(zip(first["image_id"].to_pylist(), first["cluster_id"].to_pylist(), strict=True))
    new = dict(zip(second["image_id"].to_pylist(), second["cluster_id"].to_pylist(), strict=True))
    shared = sorted(old.keys() & new.keys())
    before, after = set(old.values()) - {None}, set(new.values()) - {None}
    return {
        "archive": archive,
        "from": a,
        "to": b,
        "images_added": len(new.keys() - old.keys()),
        "images_gone": len(old.keys() - new.keys()),
        "images_shared": len(shared),
        "kept_cluster_share": float(np.mean([old[i] == new[i] for i in shared])) if shared else None,
        "ari_on_shared": agreement([old[i] for i in shared], [new[i] for i in shared])["ari"] if shared else None,
        "clusters_born": sorted(after - before),
        "clusters_gone": sorted(before - after),
        "sizes": {c: [_size(old, c), _size(new, c)] for c in sorted(before | after)},
    }


def failed(run: Run) -> list[dict[str, Any]]:
    """Every quarantined observation of a run: file, reason, detail, digest."""
    observations = run.read_table("catalog", "observations.parquet").to_pylist()
    rows = [
        {"stage": "catalog", **{name: row[name] for name in ("file", "reason", "detail", "sha256")}}
        for row in observations
        if row["status"] == "quarantined"
    ]
    if run.stage("embed").sealed:
        late = {row["image_id"]: row for row in run.read_table("embed", "failed.parquet").to_pylist()}
        rows += [
            {"stage": "embed", "file": row["file"], "sha256": row["sha256"]}
            | {name: late[row["image_id"]][name] for name in ("reason", "detail")}
            for row in observations
            if row["status"] == "ok" and row["image_id"] in late
        ]
    return rows


def show(run: Run) -> dict[str, Any]:
    """A run at a glance: its spec, and what each stage has done so far."""
    stages = {}
    for name in run.spec.stages:
        artifact = run.stage(name).sealed
        stages[name] = (
            {"state": "not complete"}
            if artifact is None
            else {
                "state": "complete",
                "attempt": artifact.attempt,
                "seconds": artifact.seconds,
                "counts": artifact.counts,
                "facts": artifact.facts,
                "outputs": {k: run.store.uri(v.key) for k, v in artifact.outputs.items() if "/" not in k},
            }
        )
    return {"run_uri": run.uri, "spec": run.spec.model_dump(mode="json"), "stages": stages}


def _size(clusters: dict[str, int | None], cluster: int | None) -> int:
    return Counter(clusters.values())[cluster]

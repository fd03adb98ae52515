"""Questions to a published version: nearest images, what changed between versions, what failed."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.errors import InputError, ObjectNotFoundError
from damage_atlas.faiss_index import read_index, search_index
from damage_atlas.images import ImageError, Limits, decode, preprocess
from damage_atlas.metrics import agreement
from damage_atlas.network import embed_pixels, load_network, resolve_precision
from damage_atlas.store import Run, Store, absolute, list_versions, read_version
from damage_atlas.store.runs import read_output
from damage_atlas.store.versions import run_model


def published_run(store: Store, archive: str, version: int | None = None) -> Run:
    """The run behind a version; the current one by default."""
    return Run.load(store.uri(read_version(store, archive, version).run_key))


def search(store: Store | str, archive: str, image: str | Path, k: int = 10) -> list[dict[str, Any]]:
    """The ``k`` images of the archive's current version that are nearest to ``image``.

    Args:
        image: a file, a URI, or an image_id of the archive.

    Returns:
        Rows, best first: rank, similarity (cosine), cluster_id (None for noise), label, asset_id, image_id, uri.

    Raises:
        InputError: no such archive or image, or the image cannot be read.
    """
    store = store if isinstance(store, Store) else Store(store)
    if k < 1:
        raise InputError(f"-k {k}: ask for at least one image.")
    run = published_run(store, archive)
    index = read_index(run)
    if str(image) in set(index.ids):
        query = index.vector(index.ids.index(str(image)))[None]
    else:
        query = _embed_file(run, str(image))
    near = search_index(index.faiss_index, query, k)
    points = run.read_table("cluster", "points.parquet")
    wanted = [index.ids[i] for i in near.ids_NK[0] if i >= 0]
    by_id: dict[str, dict[str, Any]] = {}
    for row in points.filter(pc.is_in(points["image_id"], value_set=pa.array(wanted, pa.string()))).to_pylist():
        by_id.setdefault(row["image_id"], row)
    return [
        {"rank": rank, "similarity": round(min(float(similarity), 1.0), 6)}
        | {name: by_id[image_id][name] for name in ("cluster_id", "label", "asset_id", "image_id", "uri")}
        for rank, image_id, similarity in zip(itertools.count(1), wanted, near.similarities_NK[0], strict=False)
    ]


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


def _embed_file(run: Run, image: str) -> np.ndarray:
    location = absolute(image)
    folder, _, name = location.rpartition("/")
    try:
        pixels = decode(Store(folder or "/").read(name), Limits.of(run.spec.settings.catalog))
    except ObjectNotFoundError as error:
        raise InputError(
            f"{image} is neither a file nor an image_id of {run.spec.archive}. Check the name; `search` takes a path, "
            "a URI, or an image_id as `search --json` prints it."
        ) from error
    except ImageError as error:
        raise InputError(f"{image} cannot be read as a picture ({error.reason}: {error.detail}).") from error
    card = run_model(run)
    network = load_network(read_output(run.store, card.weights), card.network)
    spec = run.spec.settings.embed
    dtype = resolve_precision(spec.precision, next(network.parameters()).device)
    return embed_pixels(network, preprocess(pixels, network.input_size)[None], spec.batch_size, dtype)


def _size(clusters: dict[str, int | None], cluster: int | None) -> int:
    return Counter(clusters.values())[cluster]

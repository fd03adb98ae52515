"""Ten successive deliveries of the demo archive: which images keep their cluster's id, and what it costs.

    damage-atlas demo --out var/demo
    python -m damage_atlas.experiments.deliveries var/demo

The images of the demo's last version arrive anew: a first delivery, then ten of 5% each, every run with another seed of
t-SNE. Each version is compared with the one before it, and with a clustering from nothing of the same images. Then the
map is fitted anew, and a window without one shared image follows another. All runs are kept in the demo's store.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from damage_atlas.demo.truth import read_truth
from damage_atlas.experiments.staged import StagedArchive
from damage_atlas.metrics import agreement
from damage_atlas.neighbours import Floats, read_vectors
from damage_atlas.query import published_run
from damage_atlas.spec import ClusterSpec, Settings
from damage_atlas.store import Run, Store
from damage_atlas.store.versions import run_model

_DELIVERIES, _SHARE = 10, 0.05

Places = Mapping[str, int | None]  # image -> cluster, None for noise


def ten_deliveries(out: Path) -> list[str]:
    """The lines of two tables, as docs/results.md has them."""
    store = Store(out / "store")
    demo = published_run(store, "demo")
    ids, vectors = read_vectors(demo)
    modes = _modes(demo, out)
    order = np.random.default_rng(0).permutation(len(ids))
    sizes = [round(len(ids) / (1 + _SHARE) ** (_DELIVERIES - k)) for k in range(_DELIVERIES + 1)]
    line = StagedArchive(store, "ten-deliveries", run_model(demo))
    lines = [
        "| version | images | clusters | clustered ones that keep their id | all that do | ARI with the hidden modes | "
        "of a clustering from nothing | median movement of old points, share of the map | events |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    before: Run | None = None
    for k, size in enumerate(sizes):
        rows = np.sort(order[:size])
        names, own = [ids[i] for i in rows], vectors[rows]
        settings = Settings(cluster=ClusterSpec(seed=k, threads=1, resamples=0))
        run = line.cluster(f"delivery-{k:02d}", names, own, settings)
        line.publish(run)
        fresh = StagedArchive(store, f"from-nothing-{k:02d}", line.card).cluster("only", names, own, settings)
        cells = [str(k + 1), f"{size:,}", str(run.artifact("cluster").facts["clusters"])]
        cells += ["–", "–"] if before is None else [f"{s:.3f}" for s in kept(places(before), places(run))]
        cells += [f"{_ari(places(r), modes):.3f}" for r in (run, fresh)]
        cells += ["–"] if before is None else [f"{_movement(before, run):.4f}"]
        lines.append(f"| {' | '.join([*cells, lineage(run)])} |")
        before = run
    assert before is not None
    lines += ["", *_refit(line, before, names, own), *_windows(store, line, ids, vectors, modes)]
    return lines


def places(run: Run) -> dict[str, int | None]:
    """Where a version's images lie."""
    table = run.read_table("cluster", "points.parquet", ["image_id", "cluster_id"])
    return dict(zip(table["image_id"].to_pylist(), table["cluster_id"].to_pylist(), strict=True))


def _refit(line: StagedArchive, before: Run, names: list[str], own: Floats) -> list[str]:
    """The last version's images once more, on a map that is fitted anew with another seed."""
    settings = Settings(cluster=ClusterSpec(seed=99, threads=1, resamples=0, refit=True))
    run = line.cluster("refit", names, own, settings)
    clustered, everything = kept(places(before), places(run))
    told = f"{clustered:.3f} of clustered images keep their id, {everything:.3f} of all"
    return [f"Map fitted anew: {told}; {lineage(run)}."]


def _windows(
    store: Store, line: StagedArchive, ids: list[str], vectors_ND: Floats, modes: Mapping[str, str]
) -> list[str]:
    """Two halves of the archive one after the other: no image is in both."""
    archive = StagedArchive(store, "windows", line.card)
    settings = Settings(cluster=ClusterSpec(threads=1, resamples=0))
    halves = np.array_split(np.random.default_rng(1).permutation(len(ids)), 2)
    runs = []
    for name, half in zip(("first", "second"), halves, strict=True):
        rows = np.sort(half)
        runs.append(archive.cluster(name, [ids[i] for i in rows], vectors_ND[rows], settings))
        archive.publish(runs[-1])
    first, second = (places(run) for run in runs)
    old = {c for c in first.values() if c is not None}
    clustered = [c for c in second.values() if c is not None]
    of_mode = [_majority(places_of, modes) for places_of in (first, second)]
    same = {c for c in of_mode[1] if c in of_mode[0] and of_mode[0][c] == of_mode[1][c]}
    return [
        f"A window without a shared image: {np.mean([c in old for c in clustered]):.3f} of clustered images lie in a "
        f"cluster with an old id, {np.mean([c in same for c in clustered]):.3f} in one whose most frequent hidden mode "
        f"is the old one's too; {lineage(runs[1])}."
    ]


def kept(before: Places, now: Places) -> tuple[float, float]:
    """Of images that are in a cluster of both versions, and of all images of both, the share with the same id."""
    shared = [(before[i], now[i]) for i in before.keys() & now.keys()]
    clustered = [a == b for a, b in shared if a is not None and b is not None]
    return float(np.mean(clustered)), float(np.mean([a == b for a, b in shared]))


def _ari(found: Places, modes: Mapping[str, str]) -> float:
    shown = [i for i in found if i in modes]
    return agreement([modes[i] for i in shown], [found[i] for i in shown])["ari"]


def _majority(found: Places, modes: Mapping[str, str]) -> dict[int, str]:
    counts: dict[int, Counter[str]] = {}
    for image_id, cluster in found.items():
        if cluster is not None and image_id in modes:
            counts.setdefault(cluster, Counter())[modes[image_id]] += 1
    return {cluster: max(sorted(c), key=c.__getitem__) for cluster, c in counts.items()}


def _movement(before: Run, now: Run) -> float:
    def positions(run: Run) -> dict[str, tuple[float, float]]:
        table = run.read_table("cluster", "points.parquet", ["image_id", "x", "y"])
        return {row["image_id"]: (row["x"], row["y"]) for row in table.to_pylist()}

    old, new = positions(before), positions(now)
    moved = np.array([np.subtract(new[i], old[i]) for i in old.keys() & new.keys()])
    return float(np.median(np.linalg.norm(moved, axis=1)) / now.artifact("cluster").facts["map_width"])


def lineage(run: Run) -> str:
    """What became of the clusters since the version before, as text."""
    counts = Counter(run.read_table("cluster", "lineage.parquet")["event"].to_pylist())
    return ", ".join(f"{n} {event}" for event, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _modes(demo: Run, out: Path) -> dict[str, str]:
    """The hidden mode of each close-up that shows one."""
    truth = read_truth(out)
    rows: list[dict[str, Any]] = demo.read_table("catalog", "observations.parquet").to_pylist()
    return {
        row["image_id"]: truth[row["file"]]["mode"]
        for row in rows
        if row["status"] == "ok" and row["tile_x"] is None and truth[row["file"]]["mode"]
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Ten deliveries of 5% each: which images keep their cluster's id.")
    parser.add_argument("demo", type=Path, help="the folder that `damage-atlas demo --out` has filled")
    for line in ten_deliveries(parser.parse_args().demo):
        print(line)


if __name__ == "__main__":
    main()

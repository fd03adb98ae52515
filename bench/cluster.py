"""The cluster stage against its peers, and how it grows: t-SNE and DBSCAN, DBSCAN alone, the stage by archive size.

    python -m bench cluster                  # map and clusters at 12,000; DBSCAN at 1,000,000; the stage at three sizes
    python -m bench.cluster map              # one part: map, dbscan, stage
    python -m bench.cluster stage 1000000    # the stage at another size
    python -m bench.cluster demo var/demo    # on the vectors of a demo that has run: ten deliveries, and confidence

The stage is all that it computes (landmarks, map, clusters, confidence), without tables. Vectors are drawn
around 60 directions of unequal weight, one in fifty anywhere. Each measurement runs in a process of its own, so that
its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from openTSNE import TSNE as OpenTSNE
from sklearn.cluster import DBSCAN
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score

from damage_atlas.cluster import map_and_cluster, neighbours_on_map
from damage_atlas.cluster.confidence import Confidence, measure_confidence
from damage_atlas.cluster.dbscan import dbscan
from damage_atlas.cluster.density import find_clusters
from damage_atlas.cluster.landmarks import Clustered, choose_landmarks, estimate_memory
from damage_atlas.cluster.layout import OldMap
from damage_atlas.cluster.near import find_neighbours, kept_neighbours, neighbour_table
from damage_atlas.cluster.passports import match_clusters
from damage_atlas.cluster.tsne import make_map
from damage_atlas.demo.truth import read_truth
from damage_atlas.neighbours import Floats, Ints, Neighbours, read_vectors
from damage_atlas.parts import map_in_threads
from damage_atlas.query import published_run
from damage_atlas.spec import ClusterSpec
from damage_atlas.store import Store

_KINDS, _NOISE, _ANYWHERE = 60, 0.35, 0.02
_MAP_POINTS = 12_000
_STAGES = (10_000, 100_000, 1_000_000)
_PLANE_POINTS, _PLANE_NEIGHBOURS = 1_000_000, 100


def archive(count: int, seed: int = 0) -> tuple[Floats, Ints]:
    """Unit vectors in 16-D, and the kind of each; -1 for those that lie anywhere."""
    rng = np.random.default_rng(seed)
    directions = _to_unit(np.random.default_rng(1).standard_normal((_KINDS, 16)))
    weights = 1 / np.arange(1, _KINDS + 1)
    kind = rng.choice(_KINDS, count, p=weights / weights.sum())
    kind[rng.random(count) < _ANYWHERE] = -1
    vectors = directions[kind] + rng.standard_normal((count, 16)) * _NOISE / 4
    vectors[kind < 0] = rng.standard_normal((int((kind < 0).sum()), 16))
    return _to_unit(vectors), kind


def main() -> None:
    """All parts."""
    compare_maps()
    compare_dbscan()
    for count in _STAGES:
        measure_stage(count)


def compare_maps() -> None:
    """t-SNE and DBSCAN of the same vectors: ours, openTSNE called plainly, scikit-learn's."""
    results = {name: _alone(f"map-{name}") for name in ("ours", "opentsne", "scikit-learn")}
    for name in ("opentsne", "scikit-learn"):
        ratio = results[name]["seconds"] / results["ours"]["seconds"]
        print(
            f"t-SNE and DBSCAN, {_MAP_POINTS:,} vectors: {results['ours']['seconds']:.1f} s, "
            f"{name} {results[name]['seconds']:.1f} s, ratio {ratio:.2f}; ARI with the kinds "
            f"{results['ours']['ari']:.3f} and {results[name]['ari']:.3f}",
            flush=True,
        )


def compare_dbscan() -> None:
    """DBSCAN of points in the plane with about a hundred neighbours each."""
    ours, theirs = _alone("dbscan-ours"), _alone("dbscan-scikit-learn")
    assert ours["cores"] == theirs["cores"] and ours["noise"] == theirs["noise"], "not the same clusters"
    print(
        f"DBSCAN, {_PLANE_POINTS:,} points with about {_PLANE_NEIGHBOURS} neighbours: {ours['seconds']:.1f} s and "
        f"{ours['mib']:,.0f} MiB, scikit-learn on 2 threads {theirs['seconds']:.1f} s and {theirs['mib']:,.0f} MiB, "
        f"ratio {theirs['seconds'] / ours['seconds']:.1f}, memory {ours['mib'] / theirs['mib']:.1%}",
        flush=True,
    )


def measure_stage(count: int) -> None:
    """From nothing, and with 1% new on the kept map; with fewer landmarks against all."""
    full = _alone(f"stage-{count}")
    print(
        f"stage, {count:,} vectors, {full['landmarks']:,} on the map: {full['seconds']:.0f} s "
        f"({_each(full['parts'])}), {full['mib']:,.0f} MiB (estimated {full['estimate_mib']:,.0f}), ARI with the kinds "
        f"{full['ari']:.3f}; 1% new: {full['again_seconds']:.0f} s, {full['again_seconds'] / full['seconds']:.0%} "
        f"({_each(full['again_parts'])}); with a fifth as landmarks {full['fifth_seconds']:.0f} s, ARI with the full "
        f"answer {full['fifth_ari']:.3f}, landmarks that disagree {full['fifth_disagreement']:.1%}",
        flush=True,
    )


def _each(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.0f}" for name, seconds in parts.items())


def follow_demo(out: Path) -> None:
    """The demo's last version cut into ten deliveries of 5% new each, then how far confidence can be believed."""
    vectors, ids, modes = demo_vectors(out)
    deliver(vectors, ids, modes)
    calibrate(vectors)
    for seed in range(3):
        uniform = _to_unit(np.random.default_rng(seed).standard_normal((1000, 16)))
        labels, sure = _clusters_of(uniform, ClusterSpec())
        print(f"uniform vectors, seed {seed}: {labels.max() + 1} clusters, confidence {sure.confidence_C.round(2)}")


def demo_vectors(out: Path) -> tuple[Floats, list[str], list[str]]:
    """Vectors of the demo's last version, in a random order, and the hidden mode of each; "" for tiles."""
    store = Store(out / "store")
    run = published_run(store, "demo")
    ids, vectors = read_vectors(run)
    truth = read_truth(out)
    seen = run.read_table("catalog", "observations.parquet", ["image_id", "file", "tile_x", "status"]).to_pylist()
    mode = {
        row["image_id"]: truth[row["file"]]["mode"] if row["tile_x"] is None else ""
        for row in seen
        if row["status"] == "ok"
    }
    order = np.random.default_rng(0).permutation(len(ids))
    return vectors[order], [ids[i] for i in order], [mode[ids[i]] for i in order]


def deliver(vectors_ND: Floats, ids: list[str], modes: list[str], deliveries: int = 10) -> None:
    """One version for each delivery, each with another seed, on the kept map; beside it a map fitted from nothing."""
    count = int(len(ids) / 1.05**deliveries)
    old: OldMap | None = None
    clusters: dict[str, int | None] | None = None
    next_id = 1
    for delivery in range(deliveries + 1):
        spec = ClusterSpec(seed=delivery, resamples=0)
        vectors, rows = vectors_ND[:count], np.arange(count)
        layout, on_map, found = map_and_cluster(vectors, rows, spec, old)
        matching = match_clusters(dict(zip(ids, found.labels_N.tolist(), strict=False)), clusters, next_id)
        now = {i: matching.ids.get(label) for i, label in zip(ids, found.labels_N.tolist(), strict=False)}
        _, _, fresh = map_and_cluster(vectors, rows, spec, None)
        line = f"delivery {delivery}, {count:,} images, map {layout.how}, old points moved {layout.moved_share:.2%}"
        line += f", ARI with the modes {_ari(modes, found.labels_N):.3f}"
        line += f", fitted from nothing {_ari(modes, fresh.labels_N):.3f}"
        if clusters is not None:
            stay = [i for i, cluster in clusters.items() if cluster is not None and now[i] is not None]
            kept = np.mean([clusters[i] == now[i] for i in stay])
            line += f", of those that stay clustered {kept:.2%} keep their id"
            line += f", of all {np.mean([clusters[i] == now[i] for i in clusters]):.2%}"
        print(line, flush=True)
        count, clusters, next_id = min(int(np.ceil(1.05 * count)), len(ids)), now, matching.next_id
        positions = np.full((count, 2), np.nan)
        positions[: len(rows)] = found.positions_N2
        eps = on_map.radius.eps if on_map.radius else None
        old = OldMap(positions, changed=layout.changed, eps=eps)


def calibrate(vectors_ND: Floats) -> None:
    """How often clusters come back in resamples that their confidence does not know of."""
    labels, sure = _clusters_of(vectors_ND, ClusterSpec())
    near = find_neighbours(vectors_ND, 10).ids_NK
    others = ClusterSpec(seed=1000)
    check = measure_confidence(vectors_ND, near, labels, [None] * len(labels), others, map_in_threads)
    for low, high in ((0.0, 0.5), (0.5, 0.9), (0.9, 1.01)):
        chosen = (sure.confidence_C >= low) & (sure.confidence_C < high)
        if chosen.any():
            print(
                f"confidence from {low:g} to {min(high, 1):g}: {chosen.sum()} clusters, which come back in "
                f"{check.reappears_C[chosen].mean():.0%} of {others.resamples} other resamples",
                flush=True,
            )


def _clusters_of(vectors_ND: Floats, spec: ClusterSpec) -> tuple[Ints, Confidence]:
    _, _, found = map_and_cluster(vectors_ND, np.arange(len(vectors_ND)), spec, None)
    groups = [None] * len(vectors_ND)
    near = found.near.ids_NK[:, :10]
    return found.labels_N, measure_confidence(vectors_ND, near, found.labels_N, groups, spec, map_in_threads)


def _ari(modes: list[str], labels_N: Ints) -> float:
    rows = [row for row in range(len(labels_N)) if modes[row]]
    return float(adjusted_rand_score([modes[row] for row in rows], labels_N[rows]))


def _map_ours() -> dict[str, Any]:
    vectors, kind = archive(_MAP_POINTS)
    spec = ClusterSpec(resamples=0)

    def work() -> Ints:
        near = find_neighbours(vectors, 90)
        return find_clusters(make_map(vectors, near, spec), vectors, spec).labels_N

    return _timed(work, kind)


def _map_opentsne() -> dict[str, Any]:
    vectors, kind = archive(_MAP_POINTS)
    tsne = OpenTSNE(perplexity=30, metric="cosine", n_jobs=2, random_state=0)
    return _timed(lambda: DBSCAN(eps=3, min_samples=10).fit(np.asarray(tsne.fit(vectors))).labels_, kind)


def _map_scikit_learn() -> dict[str, Any]:
    vectors, kind = archive(_MAP_POINTS)
    tsne = TSNE(perplexity=30, metric="cosine", max_iter=750, n_jobs=2, random_state=0)
    return _timed(lambda: DBSCAN(eps=3, min_samples=10).fit(tsne.fit_transform(vectors)).labels_, kind)


def _timed(work: Callable[[], Ints], kind: Ints) -> dict[str, Any]:
    started = time.perf_counter()
    labels = work()
    return {"seconds": time.perf_counter() - started, "ari": float(adjusted_rand_score(kind, labels))}


def _dbscan_points() -> tuple[Floats, float]:
    width = 1000.0
    points = np.random.default_rng(0).uniform(0, width, (_PLANE_POINTS, 2))
    return points, float(np.sqrt(_PLANE_NEIGHBOURS / np.pi / _PLANE_POINTS) * width)


def _dbscan_ours() -> dict[str, Any]:
    points, eps = _dbscan_points()
    before, started = _peak_mib(), time.perf_counter()
    labels, is_core = dbscan(points, eps, 10)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "mib": _peak_mib() - before,
        "cores": int(is_core.sum()),
        "noise": int((labels < 0).sum()),
    }


def _dbscan_scikit_learn() -> dict[str, Any]:
    points, eps = _dbscan_points()
    before, started = _peak_mib(), time.perf_counter()
    found = DBSCAN(eps=eps, min_samples=10, n_jobs=2).fit(points)
    seconds = time.perf_counter() - started
    cores, noise = len(found.core_sample_indices_), int((found.labels_ < 0).sum())
    return {"seconds": seconds, "mib": _peak_mib() - before, "cores": cores, "noise": noise}


def _stage(count: int) -> dict[str, Any]:
    spec = ClusterSpec()
    new = count // 100
    everything, kinds = archive(count + new)
    vectors, kind = everything[:count], kinds[:count]
    parts: dict[str, float] = {}
    seconds, (mapped, near, found) = _run_stage(vectors, spec, None, parts)
    peak = _peak_mib()
    old = np.full((count + new, 2), np.nan)
    old[:count] = found.positions_N2
    was = np.isin(np.arange(count + new), mapped)
    table = neighbour_table([str(row) for row in mapped], near)
    again: dict[str, float] = {}
    again_seconds, _ = _run_stage(everything, spec, OldMap(old, landmark_N=was), again, table)
    fifth = spec.model_copy(update={"landmarks": min(count, spec.landmarks) // 5, "resamples": 0})
    fifth_seconds, (_, _, spread) = _run_stage(vectors, fifth, None, {})
    return {
        "seconds": seconds,
        "parts": parts,
        "landmarks": len(mapped),
        "mib": peak,
        "estimate_mib": estimate_memory(count, len(mapped), 16, spec) / 2**20,
        "ari": float(adjusted_rand_score(kind, found.labels_N)),
        "again_seconds": again_seconds,
        "again_parts": again,
        "fifth_seconds": fifth_seconds,
        "fifth_ari": float(adjusted_rand_score(found.labels_N, spread.labels_N)),
        "fifth_disagreement": spread.disagreement,
    }


def _run_stage(
    vectors_ND: Floats, spec: ClusterSpec, old: OldMap | None, parts: dict[str, float], table: pa.Table | None = None
) -> tuple[float, tuple[Ints, Neighbours, Clustered]]:
    """With an old map it is a night without a new cluster: of each it is known how often it came back.

    Args:
        table: the neighbours that the version of the old map has kept.
    """
    started = time.perf_counter()
    if old is None or old.landmark_N is None:
        mapped = choose_landmarks(vectors_ND, spec)
    else:
        mapped = choose_landmarks(vectors_ND, spec, old.landmark_N, np.isnan(old.positions_N2[:, 0]))
    parts["landmarks"] = time.perf_counter() - started
    kept = None if table is None else kept_neighbours(table, [str(row) for row in mapped])
    nearest = neighbours_on_map(vectors_ND, mapped, spec, kept)
    parts["neighbours"] = time.perf_counter() - started - sum(parts.values())
    _, _, found = map_and_cluster(vectors_ND, mapped, spec, old, nearest)
    parts["map and clusters"] = time.perf_counter() - started - sum(parts.values())
    near = found.near.ids_NK[:, :10]
    known = None if old is None else dict.fromkeys(range(int(found.labels_N.max()) + 1), 1.0)
    measure_confidence(vectors_ND, near, found.labels_N, [None] * len(vectors_ND), spec, map_in_threads, known)
    parts["confidence"] = time.perf_counter() - started - sum(parts.values())
    return time.perf_counter() - started, (mapped, nearest, found)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _to_unit(vectors_ND: Any) -> Floats:
    return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), np.float32)


def _alone(what: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "bench.cluster", "--measure", what]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        sys.exit(f"bench.cluster, {what}: exit {done.returncode}\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


_MEASUREMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "map-ours": _map_ours,
    "map-opentsne": _map_opentsne,
    "map-scikit-learn": _map_scikit_learn,
    "dbscan-ours": _dbscan_ours,
    "dbscan-scikit-learn": _dbscan_scikit_learn,
}

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--measure", what]:
            measured = _stage(int(what.removeprefix("stage-"))) if what.startswith("stage-") else _MEASUREMENTS[what]()
            print(json.dumps(measured))
        case ["map"]:
            compare_maps()
        case ["dbscan"]:
            compare_dbscan()
        case ["demo", folder]:
            follow_demo(Path(folder))
        case ["stage", *sizes] if sizes:
            for size in sizes:
                measure_stage(int(size))
        case _:
            main()

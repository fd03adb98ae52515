"""Clusters of one archive over seeds of t-SNE: how many, how much noise, whether they are the same, what explains them.

    damage-atlas run --images ... --store var/results --archive sdnet2018
    python -m damage_atlas.experiments.seeds var/results sdnet2018 --out var/seeds

The current version's vectors are laid out and clustered from nothing, by ``paper`` (eps 3, nothing split) and by
``auto``, with five seeds each. Classes and nuisances (photo, asset, file) are those of its catalog.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from sklearn.metrics import adjusted_rand_score

from damage_atlas.cluster.confidence import cluster_afresh, explained_by, silhouette
from damage_atlas.neighbours import Floats, Ints, read_vectors
from damage_atlas.query import published_run
from damage_atlas.report.figures import draw_map
from damage_atlas.report.palette import look
from damage_atlas.spec import ClusterSpec
from damage_atlas.store import Run, Store

SETTINGS = {"paper": ClusterSpec(method="paper", threads=1), "auto": ClusterSpec(threads=1)}
_SEEDS = 5


@dataclass(frozen=True)
class Clustering:
    """What one seed gives; -1 is noise."""

    labels_N: Ints
    positions_N2: Floats
    eps: float

    @property
    def clusters(self) -> int:
        """How many there are."""
        return int(self.labels_N.max(initial=-1)) + 1

    @property
    def noise_share(self) -> float:
        """Share of the images that lie in none."""
        return float((self.labels_N < 0).mean())


@dataclass(frozen=True)
class Described:
    """Classes of the images, None where none is given, and what else is known of them."""

    classes: list[str | None]
    nuisances: dict[str, list[str | None]]


def cluster_with_seed(vectors_ND: Floats, spec: ClusterSpec, seed: int) -> Clustering:
    """All vectors on a new map that begins from places drawn by the seed: the product's own begins from none."""
    positions, found = cluster_afresh(vectors_ND, spec, seed)
    assert found.radius is not None
    return Clustering(found.labels_N, positions, found.radius.eps)


def table_row(archive: str, method: str, vectors_ND: Floats, runs: Sequence[Clustering], known: Described) -> str:
    """A line of the table of docs/results.md: means over seeds, and the range of the number of clusters."""
    counts = [run.clusters for run in runs]
    same = [adjusted_rand_score(a.labels_N, b.labels_N) for a, b in combinations(runs, 2)]
    shared = [explained_by(run.labels_N, known.classes, known.nuisances)[0] for run in runs]
    width = [s for run in runs if (s := silhouette(vectors_ND, run.labels_N)) is not None]
    information = ", ".join(
        f"{name} {np.mean([s[name] for s in shared]):.2f}" for name in ("class", *known.nuisances) if name in shared[0]
    )
    cells = [
        archive,
        f"`{method}`",
        f"{np.median(counts):g} ({min(counts)} to {max(counts)})",
        f"{np.mean([run.noise_share for run in runs]):.1%}",
        f"{np.mean([run.eps for run in runs]):.2f}",
        f"{np.mean(width):.2f}" if width else "–",
        information,
        f"{np.mean(same):.2f} ({min(same):.2f} to {max(same):.2f})",
    ]
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| archive | setting | clusters: median (range) | noise | eps | silhouette | AMI with | ARI from seed to seed |\n"
    "|---|---|---|---|---|---|---|---|"
)


def subdivision(run: Clustering, classes: Sequence[str | None]) -> dict[str, int]:
    """Predefined class -> clusters in which it is the most frequent one (the paper's section 3)."""
    names = np.array(["" if name is None else name for name in classes])
    found = dict.fromkeys(sorted(set(names.tolist()) - {""}), 0)
    for cluster in range(run.clusters):
        members = Counter(names[(run.labels_N == cluster) & (names != "")].tolist())
        if members:
            found[max(sorted(members), key=lambda name: members[name])] += 1
    return found


def describe(run: Run, ids: Sequence[str]) -> Described:
    """What the run's catalog says of the images."""
    table = run.read_table("catalog", "observations.parquet")
    rows = {row["image_id"]: row for row in reversed(table.to_pylist())}  # of images with equal pixels the first
    ours = [rows[image_id] for image_id in ids]
    columns = {"photo": "group", "asset": "asset_id", "file": "file"}
    return Described(
        ["+".join(row["labels"]) or None for row in ours],
        {name: [row[column] for row in ours] for name, column in columns.items()},
    )


def draw(run: Clustering, title: str) -> bytes:
    """The clusters on their map, as PNG."""
    numbers = range(1, run.clusters + 1)
    of_point = [None if label < 0 else int(label) + 1 for label in run.labels_N]
    positions = run.positions_N2.astype(np.float64)
    middles = {n: np.median(positions[run.labels_N == n - 1], axis=0) for n in numbers}
    centres = {n: (float(x), float(y)) for n, (x, y) in middles.items()}
    names = {n: f"{n} ({int((run.labels_N == n - 1).sum()):,})" for n in numbers}
    return draw_map(positions, of_point, names, {n: look(n) for n in numbers}, title, centres)


def main() -> None:
    """Print the table's lines of one archive, and put its maps into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("archive")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    version = published_run(Store(arguments.store), arguments.archive)
    ids, vectors = read_vectors(version)
    known = describe(version, ids)
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(HEADER)
    for method, spec in SETTINGS.items():
        runs = [cluster_with_seed(vectors, spec, seed) for seed in range(_SEEDS)]
        print(table_row(arguments.archive, method, vectors, runs, known))
        first = runs[0]
        title = f"{arguments.archive}, {method}: {first.clusters} clusters"
        (arguments.out / f"{arguments.archive}-{method}.png").write_bytes(draw(first, title))
        finer = ", ".join(f"{name} {n}" for name, n in subdivision(first, known.classes).items())
        print(f"\nFiner than the classes, `{method}`, first seed: {finer or 'no classes are known'}\n", flush=True)


if __name__ == "__main__":
    main()

"""A few images of a kind that the demo's model has not learnt, planted among others: alerts, and the queue of noise.

    damage-atlas demo --out var/demo
    python -m damage_atlas.experiments.planted var/demo

The demo's third delivery brings a kind that no training image shows. Of it 0, 3, 5, 12 or all images come in a delivery
of 100 others to an archive of the rest; and 5 of it lie in an archive of all others, whose queue of noise is made as if
every image were in a cluster, which is the hardest case.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from damage_atlas.cluster.alerts import Earlier, Images, find_alerts
from damage_atlas.cluster.moments import moments_of
from damage_atlas.cluster.near import find_neighbours
from damage_atlas.cluster.noise import queue_noise
from damage_atlas.demo.truth import read_truth
from damage_atlas.neighbours import read_vectors
from damage_atlas.query import published_run
from damage_atlas.spec import ClusterSpec
from damage_atlas.store import Store

_DELIVERED, _ALERT_DRAWS, _QUEUE_DRAWS = 100, 20, 40
_SIZES = (0, 3, 5, 12, 35)
_LOOKED_AT = 50  # images of the queue that a person looks at


def planted(out: Path) -> Iterator[str]:
    """The lines that docs/results.md quotes."""
    run = published_run(Store(out / "store"), "demo")
    ids, vectors = read_vectors(run)
    truth = read_truth(out)
    rows = run.read_table("catalog", "observations.parquet").to_pylist()
    new_kind = {r["image_id"] for r in rows if truth[r["file"]]["planted"] == "new_kind"}
    is_planted = np.array([image_id in new_kind for image_id in ids])
    named = moments_of(run)
    number = {moment: n for n, moment in enumerate(dict.fromkeys(named.values()))}
    moment = np.array([number[named[image_id]] for image_id in ids])
    others, kind = np.flatnonzero(~is_planted), np.flatnonzero(is_planted)

    yield f"{len(others):,} images and {len(kind)} of the planted kind; {_ALERT_DRAWS} deliveries of each size:"
    for size in _SIZES:
        counts, named_share = [], []
        for seed in range(_ALERT_DRAWS):
            draw = np.random.default_rng(seed)
            order = draw.permutation(others)
            old = order[:-_DELIVERED]
            group = draw.permutation(kind)[:size]
            at = np.concatenate([old, order[-_DELIVERED:], group])
            is_new = np.arange(len(at)) >= len(old)
            images = Images(vectors[at], is_new, ~is_new, moment[at])
            found = find_alerts(images, Earlier(vectors[old], moment[old]), [], ClusterSpec())
            counts.append(len(found))
            told = np.unique(np.concatenate([at[f.rows] for f in found])) if found else np.empty(0, np.int64)
            named_share.append(np.isin(group, told).mean() if size and len(told) else 0.0)
        alone = sum(n == 1 for n in counts)
        text = f"{size} planted: no alert in {sum(n == 0 for n in counts)}, exactly one in {alone}"
        yield text + (f"; {np.mean(named_share):.2f} of the planted images named on average" if size else "")

    hits, first = [], []
    for seed in range(_QUEUE_DRAWS):
        group = np.random.default_rng(seed).permutation(kind)[:5]
        at = np.sort(np.concatenate([others, group]))
        near = find_neighbours(vectors[at], 90)
        queue = at[queue_noise([ids[i] for i in at], near, np.zeros(len(at), np.int64), moment[at]).rows_Q[:_LOOKED_AT]]
        places = np.flatnonzero(np.isin(queue, group))
        hits.append(len(places))
        first.append(places[0] + 1 if len(places) else _LOOKED_AT + 1)
    yield (
        f"5 planted, {_QUEUE_DRAWS} draws: at least one among the first {_LOOKED_AT} of the queue in "
        f"{sum(h > 0 for h in hits)}, {np.mean(hits):.1f} of the 5 on average; the first of them at rank "
        f"{np.median(first):.0f} (median)"
    )


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description="Alerts and the queue of noise for a planted kind of the demo.")
    parser.add_argument("demo", type=Path, help="the folder that `damage-atlas demo --out` has filled")
    for line in planted(parser.parse_args().demo):
        print(line, flush=True)


if __name__ == "__main__":
    main()

"""A model promotion and a forced re-fit on the demo archive: which images of stable clusters keep their cluster's id.

    damage-atlas demo --out var/demo
    python -m damage_atlas.experiments.promotion var/demo

The demo's model is trained again with another seed and promoted, and the same images are clustered with it; then its
map is fitted anew. All stages run, and both versions are published in the demo's store.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from damage_atlas.cluster.confidence import CONFIDENT
from damage_atlas.demo.runs import DEMO_ARCHIVE
from damage_atlas.experiments.deliveries import kept, lineage, places
from damage_atlas.pipeline import run_pipeline
from damage_atlas.query import published_run
from damage_atlas.spec import Settings, with_overrides
from damage_atlas.store import Run, Store, start_run


def promote(out: Path, seed: int = 1) -> list[str]:
    """A line for the promotion, and one for the re-fit; what was made before is taken."""
    store, images = Store(out / "store"), out / "images"
    spec = DEMO_ARCHIVE
    before = published_run(store, spec.archive)
    training = with_overrides(spec.training_settings, [f"train.seed={seed}", "train.promote=always"])
    run = _run(store, "train", images / "labelled", training, f"demo-training-{seed}")
    lines = []
    for what, overrides in (("promotion", []), ("refit", ["cluster.refit=true"])):
        settings = with_overrides(spec.settings, overrides)
        run = _run(store, "recluster", images / "archive", settings, f"demo-{what}-{seed}")
        lines.append(f"{what}: {_told(before, run)}")
        before = run
    return lines


def _run(store: Store, kind: str, images: Path, settings: Settings, run_id: str) -> Run:
    run = start_run(
        store,
        kind=kind,  # type: ignore[arg-type]
        archive=DEMO_ARCHIVE.archive,
        images=str(images),
        model=DEMO_ARCHIVE.model,
        settings=settings,
        run_id=run_id,
    )
    list(run_pipeline(run))
    return run


def _told(before: Run, now: Run) -> str:
    clusters = before.read_table("cluster", "clusters.parquet").to_pylist()
    stable = {row["cluster_id"] for row in clusters if (row["confidence"] or 0) >= CONFIDENT}
    old = places(before)
    in_stable = {image: cluster for image, cluster in old.items() if cluster in stable}
    clustered, everything = kept(in_stable, places(now))
    return (
        f"of {len(in_stable):,} images in {len(stable)} stable clusters (of {len(clusters)}) {everything:.3f} keep "
        f"their id, of those that stay clustered {clustered:.3f}; of all {len(old):,} images "
        f"{kept(old, places(now))[1]:.3f}. {lineage(now)}"
    )


def main() -> None:
    """Print both lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="the folder that `damage-atlas demo --out` has filled")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for line in promote(arguments.demo, arguments.seed):
        print(line)


if __name__ == "__main__":
    main()

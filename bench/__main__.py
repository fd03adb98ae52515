"""Run all benchmarks, or those named on the command line."""

from __future__ import annotations

import sys

from bench import cluster, dags, embed, embed_ray, gradcam, index, train, train_step

BENCHMARKS = {
    "gradcam": gradcam.main,
    "train_step": train_step.main,
    "train": train.main,
    "embed": embed.main,
    "embed_ray": embed_ray.main,
    "index": index.main,
    "dags": dags.main,
    "cluster": cluster.main,
}

if __name__ == "__main__":
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"bench: {', '.join(unknown)} is not there; there are {', '.join(BENCHMARKS)}.")
    for name in names:
        BENCHMARKS[name]()

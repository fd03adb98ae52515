"""Explain: for each cluster a sample, its nearest images, and what the model looks at in them (Figures 5 and 6).

gradcam.py    closed-form Grad-CAM and HiResCAM
pictures.py   one part of pictures and heat maps, written to the store
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa

from damage_atlas.contracts import EXPLANATIONS, Artifact
from damage_atlas.explain.pictures import ExplainPart, PictureJob
from damage_atlas.faiss_index import read_index, search_index
from damage_atlas.images import SOURCE_COLUMNS, Source
from damage_atlas.parts import MapParts, map_in_threads, plan_parts
from damage_atlas.progress import Progress
from damage_atlas.store import Run
from damage_atlas.store.forgotten import refuse_forgotten
from damage_atlas.store.versions import run_model

__all__ = ["explain_clusters"]

_PICTURES_PER_PART = 32  # one padded batch of the network


def explain_clusters(run: Run, map_parts: MapParts = map_in_threads) -> Artifact:
    """Pick each cluster's sample (its medoid) and nearest images, draw them and explain them."""
    stage = run.stage("explain")
    if sealed := stage.sealed:
        return sealed
    refuse_forgotten(run)
    rows = _nearest_rows(run)
    observations = _first_observations(run, {row["image_id"] for row in rows})
    jobs = [
        PictureJob(image_id, Source.of_row(row))
        for image_id, row in sorted(observations.items(), key=lambda item: (Source.of_row(item[1]).place, item[0]))
    ]
    parts = [tuple(jobs[part.rows]) for part in plan_parts(len(jobs), _PICTURES_PER_PART)]
    drawn: dict[str, dict[str, Any]] = {}
    bad = 0
    with Progress("explain", "pictures", len(jobs)) as progress:
        for results in map_parts(ExplainPart(run.uri, run.attempt), parts):
            for result in results:
                if result["failed"]:
                    bad += 1
                    continue
                drawn[result["image_id"]] = result
                for output in result["outputs"]:
                    stage.adopt(output.key.removeprefix(f"{stage.folder}/"), output)
            progress.add(len(results), sum(bool(result["failed"]) for result in results))
    spec = run.spec.settings.explain
    # Of vectors that another model made there is nothing to explain: the picture stands for its heat map.
    target, method = ("none", "none") if run_model(run).is_given else (spec.target, spec.method)
    table = pa.Table.from_pylist(
        [
            row
            | {
                "observation_id": observations[row["image_id"]]["observation_id"],
                "picture_key": drawn[row["image_id"]]["picture_key"],
                "heatmap_key": drawn[row["image_id"]]["heatmap_key"],
                "target": target,
                "method": method,
                "faithfulness": drawn[row["image_id"]]["faithfulness"],
            }
            for row in rows
            if row["image_id"] in drawn
        ],
        EXPLANATIONS,
    )
    refuse_forgotten(run)  # meanwhile
    stage.write_table("explanations.parquet", table)
    faithfulness = [r["faithfulness"] for r in drawn.values() if r["faithfulness"] is not None]
    return stage.seal(
        inputs=("catalog", "embed", "index", "cluster"),
        counts={"in": len(jobs), "out": len(drawn), "failed": bad},
        facts={
            "clusters": len({row["cluster_id"] for row in rows}),
            "pictures": len(drawn),
            "mean_faithfulness": float(np.mean(faithfulness)) if faithfulness else None,
        },
    )


def _nearest_rows(run: Run) -> list[dict[str, Any]]:
    clusters = run.read_table("cluster", "clusters.parquet")
    if clusters.num_rows == 0:
        return []
    index = read_index(run)
    place = {image_id: i for i, image_id in enumerate(index.ids)}
    samples = [place[image_id] for image_id in clusters["medoid_image_id"].to_pylist()]
    wanted = run.spec.settings.explain.nearest + 1
    near = search_index(index.faiss_index, np.stack([index.vector(sample) for sample in samples]), wanted)
    rows: list[dict[str, Any]] = []
    for cluster, sample, row_similarities, row_found in zip(
        clusters["cluster_id"].to_pylist(), samples, near.similarities_NK.tolist(), near.ids_NK.tolist(), strict=True
    ):
        others = [(i, s) for i, s in zip(row_found, row_similarities, strict=True) if i not in (sample, -1)]
        ranked = itertools.chain([(sample, 1.0)], others[: wanted - 1])
        rows += [
            {"cluster_id": cluster, "rank": rank, "image_id": index.ids[i], "similarity": min(similarity, 1.0)}
            for rank, (i, similarity) in enumerate(ranked)
        ]
    return rows


def _first_observations(run: Run, image_ids: set[str]) -> dict[str, dict[str, Any]]:
    columns = ["observation_id", "image_id", "status", *SOURCE_COLUMNS]
    table = run.read_table("catalog", "observations.parquet", columns)
    first: dict[str, dict[str, Any]] = {}
    for row in table.to_pylist():
        if row["status"] == "ok" and row["image_id"] in image_ids:
            first.setdefault(row["image_id"], row)
    return first

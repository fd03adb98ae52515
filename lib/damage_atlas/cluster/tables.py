"""Points, clusters and lineage as the tables of the contract."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from damage_atlas.cluster.passports import Matching
from damage_atlas.contracts import CLUSTERS, LINEAGE, POINTS
from damage_atlas.neighbours import Floats

_ARTEFACT_CONFIDENCE = 0.5  # below it most neighbours in the embedding lie in other clusters


@dataclass(frozen=True)
class ImageFacts:
    """What the stage knows of each image, all in the order of ``ids``."""

    ids: list[str]
    positions_N2: Floats
    cluster_ids: list[int | None]
    roles: list[str]
    confidence_N: Floats
    novelty_N: Floats
    predicted: list[str]
    vectors_ND: Floats


def point_table(observations: pa.Table, facts: ImageFacts) -> pa.Table:
    """One row for each readable observation, in the order of the catalog; equal pixels share a position."""
    place = {image_id: i for i, image_id in enumerate(facts.ids)}
    rows: list[dict[str, Any]] = []
    for row in observations.to_pylist():
        i = place.get(row["image_id"]) if row["status"] == "ok" else None
        if i is None:
            continue
        given = "+".join(row["labels"])
        rows.append(
            {
                "observation_id": row["observation_id"],
                "image_id": row["image_id"],
                "uri": row["uri"],
                "x": facts.positions_N2[i, 0],
                "y": facts.positions_N2[i, 1],
                "cluster_id": facts.cluster_ids[i],
                "role": facts.roles[i],
                "confidence": facts.confidence_N[i],
                "novelty": facts.novelty_N[i],
                "label": given or facts.predicted[i] or None,
                "label_source": "given" if given else "predicted",
                "asset_id": row["asset_id"],
                "delivery": row["delivery"],
            }
        )
    return pa.Table.from_pylist(rows, POINTS)


def cluster_table(
    points: pa.Table, facts: ImageFacts, matching: Matching, first_versions: dict[int, int], version: int
) -> pa.Table:
    """One row for each cluster, in the order of ids; sizes and labels count observations."""
    place = {image_id: i for i, image_id in enumerate(facts.ids)}
    members: dict[int, list[int]] = defaultdict(list)
    labels: dict[int, Counter[str]] = defaultdict(Counter)
    for image_id, cluster, label in zip(
        points["image_id"].to_pylist(), points["cluster_id"].to_pylist(), points["label"].to_pylist(), strict=True
    ):
        if cluster is not None:
            members[cluster].append(place[image_id])
            if label:
                labels[cluster][label] += 1
    rows = []
    for cluster in sorted(members):
        own = np.array(members[cluster])
        counts = labels[cluster]
        top = min(counts, key=lambda label: (-counts[label], label), default=None)
        confidence = float(facts.confidence_N[own].mean())
        rows.append(
            {
                "cluster_id": cluster,
                "size": len(own),
                "medoid_image_id": facts.ids[_medoid(facts.vectors_ND, np.unique(own))],
                "purity": counts[top] / len(own) if top is not None else None,
                "top_label": top,
                "label_counts": sorted(counts.items()),
                "confidence": confidence,
                "status": matching.statuses[cluster],
                "map_artefact": confidence < _ARTEFACT_CONFIDENCE,
                "first_version": first_versions.get(cluster, version),
                "new_share": matching.new_share[cluster],
                "novelty": float(facts.novelty_N[own].mean()),
            }
        )
    return pa.Table.from_pylist(rows, CLUSTERS)


def lineage_table(matching: Matching) -> pa.Table:
    """One row for each event."""
    rows = [
        {
            "from_cluster_id": e.from_id,
            "to_cluster_id": e.to_id,
            "event": e.event,
            "shared_images": e.shared,
            "share": e.share,
            "evidence": e.evidence,
        }
        for e in matching.events
    ]
    return pa.Table.from_pylist(rows, LINEAGE)


def _medoid(vectors_ND: Floats, rows: np.ndarray) -> int:
    # Of unit vectors, the one with the largest mean cosine to all is the one nearest to their sum.
    return int(rows[(vectors_ND[rows] @ vectors_ND[rows].sum(axis=0)).argmax()])

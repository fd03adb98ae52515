"""Points, clusters and lineage as the tables of the contract."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from damage_atlas.cluster.confidence import REAPPEARS_AS_ITSELF, Confidence
from damage_atlas.cluster.passports import Matching
from damage_atlas.contracts import CLUSTERS, LINEAGE, POINTS
from damage_atlas.neighbours import Floats

_ARTEFACT_SHARE = 0.5  # of neighbours in the embedding: below it most lie in other clusters


@dataclass(frozen=True)
class ClusterMarks:
    """How sure clusters are, and what else explains them; each in the order of labels."""

    confidence: Confidence
    explained_by: list[str | None]


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
    landmark_N: NDArray[np.bool_]


def point_table(observations: pa.Table, facts: ImageFacts) -> pa.Table:
    """One row for each readable observation, in the order of the catalog; equal pixels share a position."""
    readable = observations.filter(pc.equal(observations["status"], "ok"))
    places = pc.index_in(readable["image_id"], value_set=pa.array(facts.ids, pa.string()))
    readable = readable.filter(pc.is_valid(places))
    rows = places.drop_null().to_numpy()
    given = pc.binary_join(readable["labels"], "+")
    has_label = pc.not_equal(given, "")
    predicted = pa.array(facts.predicted, pa.string()).take(pa.array(rows))
    predicted = pc.if_else(pc.equal(predicted, ""), None, predicted)
    columns = {
        **{name: readable[name] for name in ("observation_id", "image_id", "uri", "asset_id", "delivery")},
        "x": facts.positions_N2[rows, 0],
        "y": facts.positions_N2[rows, 1],
        "cluster_id": pa.array(facts.cluster_ids, pa.int64()).take(pa.array(rows)),
        "role": pa.array(facts.roles, pa.string()).take(pa.array(rows)),
        "confidence": facts.confidence_N[rows],
        "novelty": facts.novelty_N[rows],
        "label": pc.if_else(has_label, given, predicted),
        "label_source": pc.if_else(has_label, "given", "predicted"),
        "landmark": facts.landmark_N[rows],
    }
    return pa.table({field.name: columns[field.name] for field in POINTS}, schema=POINTS)


def cluster_table(
    points: pa.Table,
    facts: ImageFacts,
    matching: Matching,
    marks: ClusterMarks,
    first_versions: dict[int, int],
    version: int,
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
    label_of = {cluster: label for label, cluster in matching.ids.items()}
    rows = []
    for cluster in sorted(members):
        reappears = float(marks.confidence.reappears_C[label_of[cluster]])
        own = np.array(members[cluster])
        counts = labels[cluster]
        top = min(counts, key=lambda label: (-counts[label], label), default=None)
        among_own = float(facts.confidence_N[np.unique(own)].mean())
        rows.append(
            {
                "cluster_id": cluster,
                "size": len(own),
                "medoid_image_id": facts.ids[_medoid(facts.vectors_ND, np.unique(own))],
                "purity": counts[top] / len(own) if top is not None else None,
                "top_label": top,
                "label_counts": sorted(counts.items()),
                "confidence": float(marks.confidence.confidence_C[label_of[cluster]]),
                "status": matching.statuses[cluster],
                "map_artefact": among_own < _ARTEFACT_SHARE or reappears < REAPPEARS_AS_ITSELF,
                "first_version": first_versions.get(cluster, version),
                "new_share": matching.new_share[cluster],
                "novelty": float(facts.novelty_N[own].mean()),
                "reappears": None if np.isnan(reappears) else reappears,
                "cohesion": float(marks.confidence.cohesion_C[label_of[cluster]]),
                "explained_by": marks.explained_by[label_of[cluster]],
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

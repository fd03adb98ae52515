"""Cluster: a t-SNE map of the vectors, DBSCAN on the map, and persistent cluster ids.

tsne.py        the map (openTSNE on FAISS neighbours), laid out from the previous version's
density.py     DBSCAN on the map, eps chosen without labels, bridges on the map cut in the embedding
passports.py   ids that survive from one version to the next, and what became of each cluster; pure
exemplars.py   a few images of each cluster that find it again where no image is shared
moments.py     what counts once, however many images it gave
noise.py       noise as a queue: ranked, and grouped among itself; pure
alerts.py      places where new images crowd, clusters that are born or grow, drift; pure
attention.py   the queue as a table, alerts.json with its evidence
identity.py    passports of this run, given those of the previous version
tables.py      points, clusters and lineage as tables
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.cluster.attention import write_alerts, write_noise
from damage_atlas.cluster.density import choose_eps, find_clusters, split_clusters
from damage_atlas.cluster.identity import identify_clusters, write_identity
from damage_atlas.cluster.moments import moments_of
from damage_atlas.cluster.tables import ImageFacts, cluster_table, point_table
from damage_atlas.cluster.tsne import make_map
from damage_atlas.contracts import Artifact
from damage_atlas.metrics import agreement, knn_predict
from damage_atlas.neighbours import exact_neighbours, read_vectors, without_self
from damage_atlas.parts import MapParts, map_in_threads
from damage_atlas.store import Run
from damage_atlas.store.versions import read_reference, run_model

__all__ = ["cluster_map"]

_MAP_NEIGHBOURS_PER_PERPLEXITY = 3  # van der Maaten 2014: three times the perplexity
_CONFIDENCE_NEIGHBOURS = 10
_LABEL_NEIGHBOURS = 10


def cluster_map(run: Run, map_parts: MapParts = map_in_threads) -> Artifact:
    """Lay out the map, find clusters, give them their ids, and describe them."""
    stage = run.stage("cluster")
    if sealed := stage.sealed:
        return sealed
    spec = run.spec.settings.cluster
    ids, vectors = read_vectors(run)
    previous = run.previous()
    old_points = None if previous is None else previous.read_table("cluster", "points.parquet")

    wanted = max(int(_MAP_NEIGHBOURS_PER_PERPLEXITY * spec.perplexity), _CONFIDENCE_NEIGHBOURS)
    near = without_self(exact_neighbours(vectors, wanted + 1), wanted) if len(ids) > 1 else exact_neighbours(vectors, 0)
    positions = make_map(vectors, near, spec, _old_positions(old_points, ids))
    eps = choose_eps(positions, spec.min_neighbours) if spec.eps == "auto" else float(spec.eps)
    found = find_clusters(positions, eps, spec.min_neighbours)
    before_split = found
    if spec.split_apart is not None:
        found = split_clusters(found, positions, vectors, eps, spec.min_neighbours, spec.split_apart)

    matching = identify_clusters(run, previous, ids, vectors, found.labels_N)
    reference = read_reference(run.store, run_model(run))
    reference = reference.filter(pc.equal(reference["split"], "train"))
    reference_vectors = np.stack(reference["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
    nearest_training = exact_neighbours(reference_vectors, 1, vectors).similarities_NK[:, 0] if len(ids) else None
    facts = ImageFacts(
        ids=ids,
        positions_N2=positions,
        cluster_ids=[matching.ids.get(label) for label in found.labels_N.tolist()],
        roles=found.roles,
        confidence_N=_confidence(near.ids_NK[:, :_CONFIDENCE_NEIGHBOURS], found.labels_N),
        novelty_N=np.zeros(0, np.float32) if nearest_training is None else np.maximum(1 - nearest_training, 0),
        predicted=knn_predict(reference_vectors, reference["label"].to_pylist(), vectors, _LABEL_NEIGHBOURS).tolist(),
        vectors_ND=vectors,
    )
    observations = run.read_table("catalog", "observations.parquet")
    points = point_table(observations, facts)
    version = (run.spec.previous_version or 0) + 1
    clusters = cluster_table(points, facts, matching, _old_first_versions(previous), version)
    stage.write_table("points.parquet", points)
    stage.write_table("clusters.parquet", clusters)
    write_identity(stage, previous, matching, ids, vectors, found.labels_N, clusters)
    moments = moments_of(run)
    write_noise(stage, previous, ids, near, found.labels_N, points, moments)
    alerts = write_alerts(stage, previous, matching, ids, vectors, found.labels_N, points, clusters, moments)
    noise = int((found.labels_N < 0).sum())
    given = points.filter(pc.equal(points["label_source"], "given"))  # a predicted label agrees with its own vector
    return stage.seal(
        inputs=("catalog", "embed"),
        counts={"in": points.num_rows, "out": points.num_rows, "failed": 0},
        facts={
            "images": len(ids),
            "clusters": len(matching.ids),
            "new_clusters": sum(event.event == "born" for event in matching.events) if previous else 0,
            "noise": noise,
            "noise_share": noise / len(ids) if ids else 0.0,
            "eps": eps,
            "eps_source": "auto" if spec.eps == "auto" else "as set",
            "split_by_embedding": int(found.labels_N.max(initial=-1) - before_split.labels_N.max(initial=-1)),
            "map_width": float(np.ptp(positions, axis=0).max()) if len(ids) else 0.0,
            "laid_out_from_previous": old_points is not None,
            "agreement_with_labels": agreement(given["label"].to_pylist(), given["cluster_id"].to_pylist())
            if given.num_rows
            else {},
            "next_cluster_id": matching.next_id,
            "version": version,
            "alerts": len(alerts.alerts),
        },
    )


def _old_positions(points: pa.Table | None, ids: list[str]) -> np.ndarray | None:
    if points is None:
        return None
    rows = zip(points["image_id"].to_pylist(), points["x"].to_pylist(), points["y"].to_pylist(), strict=True)
    known = {image_id: (x, y) for image_id, x, y in rows}
    return np.array([known.get(image_id, (np.nan, np.nan)) for image_id in ids], dtype=np.float64).reshape(-1, 2)


def _old_first_versions(previous: Run | None) -> dict[int, int]:
    if previous is None:
        return {}
    table = previous.read_table("cluster", "clusters.parquet")
    return dict(zip(table["cluster_id"].to_pylist(), table["first_version"].to_pylist(), strict=True))


def _confidence(near_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    if near_NK.shape[1] == 0:
        return np.zeros(len(labels_N), np.float32)
    same = (labels_N[near_NK] == labels_N[:, None]).mean(axis=1)
    return np.where(labels_N < 0, 0.0, same).astype(np.float32)

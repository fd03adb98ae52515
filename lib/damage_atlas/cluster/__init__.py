"""Cluster: a t-SNE map of the vectors, DBSCAN on the map, and persistent cluster ids.

tsne.py        t-SNE (openTSNE on FAISS neighbours), of all points or of new ones among old ones
landmarks.py   of archives too large for one map: which images are on it, and how the others follow
near.py        neighbours that a version keeps for the next
layout.py      the map: the previous version's with new points placed, or a new one turned to lie like it
dbscan.py      exact DBSCAN of points in the plane, in bounded memory; pure
radius.py      eps without labels, checked by stability
confidence.py  whether clusters come back on other maps and hold together in the embedding; what else explains them
density.py     clusters of the map, bridges on the map cut in the embedding
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

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.cluster.attention import write_alerts, write_noise
from damage_atlas.cluster.confidence import (
    CONFIDENT,
    density_validity,
    explained_by,
    measure_confidence,
    silhouette,
)
from damage_atlas.cluster.density import FoundClusters, find_clusters
from damage_atlas.cluster.identity import identify_clusters, write_identity
from damage_atlas.cluster.landmarks import Clustered, check_memory, choose_landmarks, redraw_because, spread
from damage_atlas.cluster.layout import Layout, OldMap, lay_out
from damage_atlas.cluster.moments import moments_of
from damage_atlas.cluster.near import WORTH_KEEPING, KeptNeighbours, find_neighbours, kept_neighbours, neighbour_table
from damage_atlas.cluster.passports import Matching
from damage_atlas.cluster.tables import ClusterMarks, ImageFacts, cluster_table, point_table
from damage_atlas.contracts import Artifact
from damage_atlas.errors import ContractError
from damage_atlas.metrics import agreement, knn_predict
from damage_atlas.neighbours import Floats, Ints, Neighbours, exact_neighbours, read_vectors
from damage_atlas.parts import MapParts, map_in_threads
from damage_atlas.spec import ClusterSpec
from damage_atlas.store import Run
from damage_atlas.store.versions import read_reference, run_model

logger = logging.getLogger(__name__)

__all__ = ["cluster_map", "map_and_cluster", "neighbours_on_map"]

_MAP_NEIGHBOURS_PER_PERPLEXITY = 3  # van der Maaten 2014: three times the perplexity
_CONFIDENCE_NEIGHBOURS = 10
_LABEL_NEIGHBOURS = 10
_DECIDES_CONFIDENCE = ("method", "eps", "min_neighbours", "split_apart", "perplexity", "resamples", "resample_points")
_FEW_GROUPS = 10  # with fewer, leaving out a fifth of them says little


def cluster_map(run: Run, map_parts: MapParts = map_in_threads) -> Artifact:
    """Lay out the map, find clusters, give them their ids, and describe them."""
    stage = run.stage("cluster")
    if sealed := stage.sealed:
        return sealed
    spec = run.spec.settings.cluster
    ids, vectors = read_vectors(run)
    previous = run.previous()
    old_points = None if previous is None else previous.read_table("cluster", "points.parquet")

    old = _old_map(run, previous, old_points, ids)
    if old is None or old.refit:
        mapped = choose_landmarks(vectors, spec)
    else:
        mapped = choose_landmarks(vectors, spec, old.landmark_N, np.isnan(old.positions_N2[:, 0]))
    memory = check_memory(len(ids), len(mapped), vectors.shape[1], spec)
    mapped_ids = [ids[row] for row in mapped]
    near = neighbours_on_map(vectors, mapped, spec, _kept_neighbours(previous, old, mapped_ids))
    layout, on_map, found = map_and_cluster(vectors, mapped, spec, old, near)

    matching = identify_clusters(run, previous, ids, vectors, found.labels_N)
    reference = read_reference(run.store, run_model(run))
    reference = reference.filter(pc.equal(reference["split"], "train"))
    known = reference["vector"].to_numpy(zero_copy_only=False)  # none where vectors were given without labels
    reference_vectors = np.stack(known).astype(np.float32) if len(known) else vectors[:0]
    compares = len(ids) > 0 and len(known) > 0
    nearest_training = exact_neighbours(reference_vectors, 1, vectors).similarities_NK[:, 0] if compares else None
    facts = ImageFacts(
        ids=ids,
        positions_N2=found.positions_N2,
        cluster_ids=[matching.ids.get(label) for label in found.labels_N.tolist()],
        roles=found.roles,
        confidence_N=_confidence(found.near.ids_NK[:, :_CONFIDENCE_NEIGHBOURS], found.labels_N),
        novelty_N=np.zeros(len(ids), np.float32) if nearest_training is None else np.maximum(1 - nearest_training, 0),
        predicted=knn_predict(reference_vectors, reference["label"].to_pylist(), vectors, _LABEL_NEIGHBOURS).tolist(),
        vectors_ND=vectors,
        landmark_N=np.isin(np.arange(len(ids)), mapped),
    )
    observations = run.read_table("catalog", "observations.parquet")
    points = point_table(observations, facts)
    first = _first_observation(observations, ids)
    near_ids = found.near.ids_NK[:, :_CONFIDENCE_NEIGHBOURS]
    version = (run.spec.previous_version or 0) + 1
    reappeared = _reappeared(previous, matching, spec) if layout.how == "placed" else None
    confidence = measure_confidence(
        vectors, near_ids, found.labels_N, _photos(first), spec, map_parts, reappeared, version - 1
    )
    shared_information, explained = explained_by(found.labels_N, _classes(points, ids), _nuisances(first))
    clusters = cluster_table(
        points, facts, matching, ClusterMarks(confidence, explained), _old_first_versions(previous), version
    )
    stage.write_table("points.parquet", points)
    stage.write_table("clusters.parquet", clusters)
    if len(mapped) >= WORTH_KEEPING:
        stage.write_table("neighbours.parquet", neighbour_table(mapped_ids, near))
    write_identity(stage, previous, matching, ids, vectors, found.labels_N, clusters)
    moments = moments_of(run)
    write_noise(stage, previous, ids, found.near, found.labels_N, points, moments)
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
            "method": spec.method,
            "eps": on_map.radius and on_map.radius.eps,
            "eps_source": on_map.radius and ("auto" if spec.method == "dbscan" and spec.eps == "auto" else "as set"),
            "eps_knee": on_map.radius and on_map.radius.knee,
            "eps_stability": on_map.radius and on_map.radius.stability,
            "split_by_embedding": on_map.split,
            "resamples": spec.resamples,
            "resamples_made": confidence.made,
            "resample_ari": None if np.isnan(confidence.agreement) else confidence.agreement,
            "confident_clusters": int((confidence.confidence_C >= CONFIDENT).sum()),
            "silhouette": silhouette(vectors, found.labels_N),
            "dbcv": density_validity(found.positions_N2, found.labels_N),
            "ami": shared_information,
            "explained_by_nuisance": sum(mark is not None for mark in explained),
            "map_width": float(np.ptp(found.positions_N2, axis=0).max()) if len(ids) else 0.0,
            "landmarks": len(mapped),
            "landmark_disagreement": found.disagreement,
            "memory_estimate_bytes": memory,
            "map": layout.how,
            "map_because": layout.why,
            "map_changed_since_fit": layout.changed,
            "map_moved_share": layout.moved_share,
            "map_unlike": int(layout.unlike_N.sum()),
            "agreement_with_labels": agreement(given["label"].to_pylist(), given["cluster_id"].to_pylist())
            if given.num_rows
            else {},
            "next_cluster_id": matching.next_id,
            "version": version,
            "alerts": len(alerts.alerts),
        },
    )


def neighbours_on_map(
    vectors_ND: Floats, mapped_M: Ints, spec: ClusterSpec, kept: KeptNeighbours | None = None
) -> Neighbours:
    """Of each landmark its nearest among them, as many as the map and all that follows it ask for."""
    wanted = max(int(_MAP_NEIGHBOURS_PER_PERPLEXITY * spec.perplexity), _CONFIDENCE_NEIGHBOURS)
    return find_neighbours(vectors_ND[mapped_M], wanted, kept)


def map_and_cluster(
    vectors_ND: Floats, mapped_M: Ints, spec: ClusterSpec, old: OldMap | None, near: Neighbours | None = None
) -> tuple[Layout, FoundClusters, Clustered]:
    """The map of the landmarks, their clusters, and what follows from both for all images.

    Args:
        near: what :func:`neighbours_on_map` has found, if it is known already.
    """
    vectors = vectors_ND[mapped_M]
    near = neighbours_on_map(vectors_ND, mapped_M, spec) if near is None else near
    layout = lay_out(vectors, near, spec, old and replace(old, positions_N2=old.positions_N2[mapped_M]))
    kept = old if layout.how == "placed" else None
    found = find_clusters(layout.positions_N2, vectors, spec, eps_before=kept.eps if kept else None)
    whole = spread(
        vectors_ND,
        mapped_M,
        near,
        layout.positions_N2,
        found.labels_N,
        found.roles,
        kept.positions_N2 if kept else None,
    )
    return layout, found, whole


def _first_observation(observations: pa.Table, ids: list[str]) -> pa.Table:
    """For each image the first observation that shows it: images with the same pixels count once."""
    first: dict[str, int] = {}
    for row, image_id in enumerate(observations["image_id"].to_pylist()):
        first.setdefault(image_id, row)
    return observations.take(pa.array([first[image_id] for image_id in ids], pa.int64()))


def _photos(first: pa.Table) -> list[str | None]:
    """What is drawn together in a resample: the group of the split; where there are few of them, the file."""
    groups = first["group"].to_pylist()
    return groups if len(set(groups)) >= _FEW_GROUPS else first["file"].to_pylist()


def _nuisances(first: pa.Table) -> dict[str, list[str | None]]:
    columns = {"asset": "asset_id", "photo": "file", "group": "group", "delivery": "delivery"}
    nuisances = {name: first[column].to_pylist() for name, column in columns.items()}
    # A new kind of damage comes with the newest delivery, and is not explained by it.
    newest = max((delivery for delivery in nuisances["delivery"] if delivery is not None), default=None)
    nuisances["delivery"] = [None if delivery == newest else delivery for delivery in nuisances["delivery"]]
    return nuisances


def _classes(points: pa.Table, ids: list[str]) -> list[str | None]:
    label = dict(zip(points["image_id"].to_pylist(), points["label"].to_pylist(), strict=True))
    return [label[image_id] for image_id in ids]


def _old_map(run: Run, previous: Run | None, points: pa.Table | None, ids: list[str]) -> OldMap | None:
    """The previous version's map; it is not kept when asked to, nor with another model or perplexity."""
    if previous is None or points is None:
        return None
    rows = zip(points["image_id"].to_pylist(), points["x"].to_pylist(), points["y"].to_pylist(), strict=True)
    known = {image_id: (x, y) for image_id, x, y in rows}
    positions = np.array([known.get(image_id, (np.nan, np.nan)) for image_id in ids], dtype=np.float64).reshape(-1, 2)
    # Before there were landmarks, all images were on the map.
    on_map = points["landmark"].to_pylist() if "landmark" in points.column_names else [True] * points.num_rows
    landmarks = {
        image_id for image_id, on in zip(points["image_id"].to_pylist(), on_map, strict=True) if on is not False
    }
    landmark = np.array([image_id in landmarks for image_id in ids], dtype=bool)
    gone = len(landmarks - set(ids))
    spec, old_spec = run.spec.settings.cluster, previous.spec.settings.cluster
    ours, theirs = run.artifact("embed").facts, previous.artifact("embed").facts
    if spec.refit:
        refit = "cluster.refit asks for it"
    elif (ours["model"], ours["weights_sha256"]) != (theirs["model"], theirs["weights_sha256"]):
        refit = f"the earlier map is of another model ({theirs['model']})"
    elif spec.perplexity != old_spec.perplexity:
        refit = f"the earlier map has another perplexity ({old_spec.perplexity:g})"
    else:
        refit = redraw_because(landmark, ~np.isnan(positions[:, 0]), spec)
    # A map that was sealed before points could be placed was fitted.
    facts = previous.artifact("cluster").facts
    changed = facts.get("map_changed_since_fit", 0)
    same_method = all(getattr(spec, key) == getattr(old_spec, key) for key in ("method", "min_neighbours", "eps"))
    return OldMap(positions, gone, changed, refit, facts["eps"] if same_method else None, landmark)


def _kept_neighbours(previous: Run | None, old: OldMap | None, mapped_ids: list[str]) -> KeptNeighbours | None:
    # With an old map that may be kept, the model is the same.
    if previous is None or old is None or old.refit:
        return None
    if "neighbours.parquet" not in previous.artifact("cluster").outputs:
        return None
    try:
        table = previous.read_table("cluster", "neighbours.parquet")
    except ContractError as error:
        logger.warning("%s All neighbours are searched for.", error.message)
        return None
    return kept_neighbours(table, mapped_ids)


def _reappeared(previous: Run | None, matching: Matching, spec: ClusterSpec) -> dict[int, float]:
    """Label -> how often its cluster came back in the version before, of those that are what they were."""
    if previous is None:
        return {}
    old_spec = previous.spec.settings.cluster
    if any(getattr(spec, key) != getattr(old_spec, key) for key in _DECIDES_CONFIDENCE):
        return {}
    table = previous.read_table("cluster", "clusters.parquet", ["cluster_id", "reappears"])
    known = dict(zip(table["cluster_id"].to_pylist(), table["reappears"].to_pylist(), strict=True))
    return {
        label: known[cluster]
        for label, cluster in matching.ids.items()
        if matching.statuses[cluster] in ("kept", "grown", "shrunk") and known.get(cluster) is not None
    }


def _old_first_versions(previous: Run | None) -> dict[int, int]:
    if previous is None:
        return {}
    first: dict[int, int] = {}
    if "ledger.parquet" in previous.artifact("cluster").outputs:  # also knows those that are gone, and may return
        ledger = previous.read_table("cluster", "ledger.parquet", ["to_cluster_id", "version"])
        for cluster, version in zip(ledger["to_cluster_id"].to_pylist(), ledger["version"].to_pylist(), strict=True):
            if cluster is not None:
                first[cluster] = min(version, first.get(cluster, version))
    table = previous.read_table("cluster", "clusters.parquet", ["cluster_id", "first_version"])
    return first | dict(zip(table["cluster_id"].to_pylist(), table["first_version"].to_pylist(), strict=True))


def _confidence(near_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    if near_NK.shape[1] == 0:
        return np.zeros(len(labels_N), np.float32)
    same = (labels_N[near_NK] == labels_N[:, None]).mean(axis=1)
    return np.where(labels_N < 0, 0.0, same).astype(np.float32)

"""Exemplars: a few images of each cluster, kept with the version, that find the cluster again where no image is shared.

They are a fair draw, so that the share of them that falls into a cluster of a later run estimates the share of all
images that would. E exemplars, N vectors, D dimensions.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.cluster.passports import NOWHERE
from damage_atlas.contracts import EXEMPLARS
from damage_atlas.errors import StoreError
from damage_atlas.images import SOURCE_COLUMNS, ImageError, Limits, PhotoReader, Pixels, Source, decode, preprocess
from damage_atlas.neighbours import Floats, Ints, exact_neighbours
from damage_atlas.store import Run
from damage_atlas.store.forgotten import read_forgotten
from damage_atlas.store.runs import read_output
from damage_atlas.store.versions import run_model

logger = logging.getLogger(__name__)

_DORMANT = 200  # clusters
_SHA256_DIGITS = 64  # that an image_id begins with
PER_CLUSTER = 32  # a share of 0.5 is then known to within 0.18, nineteen times out of twenty
_FEWEST = 5  # exemplars of a cluster that must be found again for it to be told
_NEIGHBOURS = 10
_REACH = 2.0  # times the distance at which images there have their tenth neighbour; a window may hold fewer images
_SMALLEST_REACH = 0.01  # 1 - cosine: what encoding a picture again may move it


def exemplar_table(model: str, ids: Sequence[str], vectors_ND: Floats, cluster_ids: Sequence[int | None]) -> pa.Table:
    """Exemplars of each cluster: its images with the smallest digests of their ids, a draw that any run repeats.

    Args:
        model: ``NAME@VERSION`` that made the vectors.
        cluster_ids: of each image; None for noise.
    """
    members: dict[int, list[int]] = {}
    for row, cluster in enumerate(cluster_ids):
        if cluster is not None:
            members.setdefault(cluster, []).append(row)
    rows = []
    for cluster in sorted(members):
        drawn = sorted(members[cluster], key=lambda row: hashlib.sha256(ids[row].encode()).digest())[:PER_CLUSTER]
        rows += [
            {"cluster_id": cluster, "image_id": ids[row], "model": model, "vector": vectors_ND[row]} for row in drawn
        ]
    return pa.Table.from_pylist(rows, EXEMPLARS)


def still_dormant(previous: Run | None, alive: Collection[int], merged: Collection[int], model: str) -> pa.Table:
    """Exemplars of the previous version whose clusters this one lacks: their kinds may come again.

    Those that another cluster took in are no kinds of their own any more. Vectors of another model are left out: what
    is not in the archive cannot be embedded again. So is what was asked to be forgotten, and beyond some hundreds of
    clusters those that are gone longest.

    Args:
        alive: clusters of this version.
        merged: clusters that went into others.
        model: ``NAME@VERSION``.
    """
    if previous is None or "exemplars.parquet" not in previous.artifact("cluster").outputs:
        return pa.Table.from_pylist([], EXEMPLARS)
    table = previous.read_table("cluster", "exemplars.parquet")
    here = pc.is_in(table["cluster_id"], pa.array(sorted({*alive, *merged}), pa.int64()))
    table = table.filter(pc.and_(pc.invert(here), pc.equal(table["model"], model)))
    table = without_forgotten(table, previous)
    # In the order of the table: what was alive until now stands before what was dormant already.
    kept = table["cluster_id"].unique()[:_DORMANT]
    return table.filter(pc.is_in(table["cluster_id"], kept))


def without_forgotten(table: pa.Table, run: Run) -> pa.Table:
    """Rows whose images nobody has asked to forget."""
    forgotten = read_forgotten(run.store, run.spec.archive)
    digest = pc.utf8_slice_codeunits(table["image_id"], 0, _SHA256_DIGITS)
    gone = pc.or_(
        pc.is_in(table["image_id"], pa.array(sorted(forgotten.image_ids), pa.string())),
        pc.is_in(digest, pa.array(sorted(forgotten.sha256), pa.string())),
    )
    return table.filter(pc.invert(gone))


def place_exemplars(
    vectors_ED: Floats, vectors_ND: Floats, labels_N: Ints, asked_for: Collection[int] | None = None
) -> Ints:
    """Label of the cluster that each exemplar falls into: of most of its nearest images, if they are near enough.

    Near enough is within ``_REACH`` times the distance at which these images have their own tenth neighbour.
    ``NOISE`` where most of them are noise, ``NOWHERE`` where none is near.

    Args:
        asked_for: labels that are of interest; an exemplar whose neighbours are of another one falls ``NOWHERE``, and
            takes no second search.
    """
    if len(vectors_ND) == 0 or len(vectors_ED) == 0:
        return np.full(len(vectors_ED), NOWHERE, np.int64)
    near = exact_neighbours(vectors_ND, _NEIGHBOURS, vectors_ED)
    # Of equal votes, the one that is nearest.
    voted_E = np.array([Counter(row).most_common(1)[0][0] for row in labels_N[near.ids_NK].tolist()], np.int64)
    rows = np.arange(len(voted_E)) if asked_for is None else np.flatnonzero(np.isin(voted_E, list(asked_for)))
    fallen = np.full(len(vectors_ED), NOWHERE, np.int64)
    if len(rows) == 0:
        return fallen
    ids = near.ids_NK[rows]
    asked, where = np.unique(ids, return_inverse=True)
    spacing = 1 - exact_neighbours(vectors_ND, _NEIGHBOURS + 1, vectors_ND[asked]).similarities_NK[:, -1]
    reach = np.maximum(_REACH * np.median(spacing[where.reshape(ids.shape)], axis=1), _SMALLEST_REACH)
    inside = rows[1 - near.similarities_NK[rows, 0] <= reach]
    fallen[inside] = voted_E[inside]
    return fallen


def find_dormant(
    dormant: pa.Table, vectors_ND: Floats, labels_N: Ints, asked_for: Collection[int]
) -> dict[int, dict[int, int]]:
    """Of each cluster of ``dormant``: label of ``asked_for``, or ``NOWHERE`` -> exemplars that fall there.

    A cluster is left out where fewer than five of its exemplars are kept.
    """
    if dormant.num_rows == 0 or not asked_for:
        return {}
    vectors = np.stack(dormant["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
    places = place_exemplars(vectors, vectors_ND, labels_N, asked_for)
    return _counted(dormant["cluster_id"].to_pylist(), places)


def _counted(clusters: Sequence[int], places_E: Ints) -> dict[int, dict[int, int]]:
    fallen: dict[int, Counter[int]] = {}
    for cluster, place in zip(clusters, places_E.tolist(), strict=True):
        fallen.setdefault(cluster, Counter())[place] += 1
    return {cluster: dict(counts) for cluster, counts in fallen.items() if counts.total() >= _FEWEST}


def find_again(
    run: Run, previous: Run, wanted: Sequence[int], ids: Sequence[str], vectors_ND: Floats, labels_N: Ints
) -> dict[int, dict[int, int]]:
    """For each cluster in ``wanted`` that can be told: label (or ``NOISE``, ``NOWHERE``) -> exemplars.

    After a promotion the exemplars' pictures are embedded by the new model. A cluster is left out where fewer than
    five of its exemplars can be: the pictures are gone, or the version is older than exemplars.
    """
    artifact = previous.artifact("cluster")
    if not wanted or "exemplars.parquet" not in artifact.outputs:
        return {}
    table = previous.read_table("cluster", "exemplars.parquet")
    table = table.filter(pc.is_in(table["cluster_id"], pa.array(list(wanted), pa.int64())))
    card = run_model(run)
    if set(table["model"].to_pylist()) <= {f"{card.model}@{card.version}"}:
        vectors = {
            image_id: np.asarray(vector, np.float32)
            for image_id, vector in zip(table["image_id"].to_pylist(), table["vector"].to_pylist(), strict=True)
        }
    else:
        vectors = _embedded_again(run, previous, table["image_id"].to_pylist(), ids, vectors_ND)
        logger.info("cluster: %d of %d exemplars were embedded by the new model", len(vectors), table.num_rows)
    found = [
        (cluster, vectors[image_id])
        for cluster, image_id in zip(table["cluster_id"].to_pylist(), table["image_id"].to_pylist(), strict=True)
        if image_id in vectors
    ]
    if not found:
        return {}
    places = place_exemplars(np.stack([vector for _, vector in found]), vectors_ND, labels_N)
    return _counted([cluster for cluster, _ in found], places)


def _embedded_again(
    run: Run, previous: Run, image_ids: Sequence[str], ids: Sequence[str], vectors_ND: Floats
) -> dict[str, Floats]:
    """Vectors of the run's model for images of ``previous``, as far as their pictures can be had."""
    place = {image_id: row for row, image_id in enumerate(ids)}
    vectors: dict[str, Floats] = {i: vectors_ND[place[i]] for i in image_ids if i in place}
    missing = sorted(set(image_ids) - set(vectors))
    card = run_model(run)
    if card.network.get("kind") == "given":  # its vectors came from elsewhere: nothing here can make another
        return vectors
    pictures = _pictures(previous, missing, card.preprocessing["size"])
    if pictures:
        from damage_atlas.network import embed_pixels, load_network, resolve_precision  # torch: seconds, seldom needed

        network = load_network(read_output(run.store, card.weights), card.network)
        settings = run.spec.settings.embed
        dtype = resolve_precision(settings.precision, next(network.parameters()).device)
        made = embed_pixels(network, np.stack(list(pictures.values())), settings.batch_size, dtype)
        vectors |= dict(zip(pictures, made, strict=True))
    return vectors


def _pictures(previous: Run, image_ids: Sequence[str], size: int) -> dict[str, Pixels]:
    """From the files they came from; where those are gone, from the pictures of the version's picture rows."""
    if not image_ids:
        return {}
    columns = ["image_id", "status", *SOURCE_COLUMNS]
    table = previous.read_table("catalog", "observations.parquet", columns)
    table = table.filter(pc.is_in(table["image_id"], pa.array(list(image_ids), pa.string())))
    sources = {row["image_id"]: Source.of_row(row) for row in table.to_pylist() if row["status"] == "ok"}
    drawn = previous.artifact("explain").outputs
    pictures: dict[str, Pixels] = {}
    with PhotoReader(previous.spec.images, Limits.of(previous.spec.settings.catalog)) as reader:
        for image_id, source in sorted(sources.items(), key=lambda item: (item[1].place, item[0])):
            try:
                pictures[image_id] = preprocess(reader.read(source), size)
            except (ImageError, StoreError):  # the file is gone, or its whole folder: an old window is not kept for us
                if output := drawn.get(f"pictures/{image_id}.jpg"):
                    pictures[image_id] = preprocess(decode(read_output(previous.store, output)), size)
    return pictures

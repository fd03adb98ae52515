"""Near-duplicates: groups of images of a published version that are more alike than a threshold.

Axes: N vectors of the index, Q queries, L lists of IVF, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from damage_atlas.errors import InputError
from damage_atlas.index.build import add_vectors, new_index
from damage_atlas.neighbours import Floats
from damage_atlas.parts import map_in_threads
from damage_atlas.query.published import PLACE_COLUMNS, load_published, published_run
from damage_atlas.spec import IndexSpec
from damage_atlas.store import Store

_MOST_PAIRS = 10_000_000
# FAISS gathers a block's pairs before it returns them. With these two numbers, and every image like every other, the
# listing took 0.7 GB beside the vectors, at 1,000,000 images as at 4,400; usually it takes a few MB.
_PAIRS_AT_ONCE = 10_000_000
_ROWS_AT_ONCE = 4096
_TOLERANCE = 1e-6  # of a cosine: float32 sums in another order, and equal vectors are not always at exactly 1


def near_duplicates(
    store: Store | str, archive: str, threshold: float = 0.999, limit: int | None = None
) -> list[dict[str, Any]]:
    """Groups of images of the archive's current version that are nearly the same, the largest first.

    Two images are joined when their cosine is at least ``threshold``; a group is all that are joined, directly or
    through others. Observations of the very same pixels are a group as well. Exact for every kind of index.

    Args:
        limit: so many of the largest groups; all by default.

    Returns:
        For each group: group (from 1), observations (how many), images (how many different ones), lowest_similarity
        and highest_similarity of the joined pairs (1.0 for one image), and places: a row for each observation, with
        the columns that ``search`` returns of one.

    Raises:
        InputError: no such archive, a threshold that is no cosine above 0, or one that joins more than 10,000,000
            pairs.
        ContractError: the index is damaged.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"--threshold {threshold}: a cosine above 0 and at most 1; 0.999 is nearly the same picture.")
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: ask for at least one group.")
    store = store if isinstance(store, Store) else Store(store)
    published = load_published(published_run(store, archive))
    count = len(published.index.ids)
    if not count:
        return []
    vectors = published.index.vectors()
    first_P, second_P, similarity_P = _joined_pairs(vectors, _in_lists(published.index.faiss_index, vectors), threshold)
    graph = coo_array((np.ones(len(first_P), bool), (first_P, second_P)), shape=(count, count))
    groups, group_of_N = connected_components(graph, directed=False)
    lowest, highest = np.ones(groups, np.float32), np.full(groups, -1, np.float32)
    np.minimum.at(lowest, group_of_N[first_P], similarity_P)
    np.maximum.at(highest, group_of_N[first_P], similarity_P)
    highest[highest < 0] = 1.0

    group_of_O = group_of_N[published.rows_O]
    sizes, images = np.bincount(group_of_O, minlength=groups), np.bincount(group_of_N, minlength=groups)
    largest = sorted(np.flatnonzero(sizes > 1).tolist(), key=lambda group: (-sizes[group], group))[:limit]
    places: dict[int, list[dict[str, Any]]] = {group: [] for group in largest}
    table = published.observations.append_column("of_group", pa.array(group_of_O))
    table = table.filter(pc.is_in(table["of_group"], value_set=pa.array(largest, table["of_group"].type)))
    for group, place in zip(table["of_group"].to_pylist(), table.select(PLACE_COLUMNS).to_pylist(), strict=True):
        places[group].append(place)
    return [
        {
            "group": number,
            "observations": int(sizes[group]),
            "images": int(images[group]),
            "lowest_similarity": round(float(lowest[group]), 6),
            "highest_similarity": round(min(float(highest[group]), 1.0), 6),
            "places": places[group],
        }
        for number, group in enumerate(largest, 1)
    ]


def _joined_pairs(vectors_ND: Floats, index: Any, threshold: float) -> tuple[np.ndarray, np.ndarray, Floats]:
    """Rows that are at least ``threshold`` alike: first row, second row (above the first), cosine."""
    count = len(vectors_ND)
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    pairs = 0
    # FAISS returns what is strictly above its limit.
    limit = float(np.nextafter(np.float32(threshold - _TOLERANCE), np.float32(-1)))
    for rows, probes in _blocks(index, _lists_to_probe(index, vectors_ND, threshold)):
        parameters = faiss.SearchParametersIVF(nprobe=probes)
        ends, similarities, others = index.range_search(vectors_ND[rows], limit, params=parameters)
        first = np.repeat(rows, np.diff(ends.astype(np.int64)))
        once = others > first
        pairs += int(once.sum())
        if pairs > _MOST_PAIRS:
            raise InputError(
                f"--threshold {threshold}: more than {_MOST_PAIRS:,} pairs of the {count:,} images are as alike as "
                "that. Raise it; 0.999 is nearly the same picture."
            )
        found.append((first[once], others[once], similarities[once]))
    first, second, similarity = (np.concatenate(column) for column in zip(*found, strict=True))
    return first, second, similarity


def _blocks(index: Any, lists_N: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Rows that are asked for together and how many lists they probe: few enough for ``_PAIRS_AT_ONCE``."""
    sizes = np.sort([index.invlists.list_size(number) for number in range(index.nlist)])[::-1]
    pairs_at_most = np.cumsum(sizes)  # of one row, by the number of lists it probes
    order = np.argsort(lists_N, kind="stable")
    start = 0
    while start < len(order):
        rows = order[start : start + _ROWS_AT_ONCE]
        probes = int(lists_N[rows[-1]])
        rows = rows[: max(1, _PAIRS_AT_ONCE // int(pairs_at_most[probes - 1]))]
        yield rows, probes
        start += len(rows)


def _in_lists(index: Any, vectors_ND: Floats) -> Any:
    """The vectors in IVF's lists: the index itself, or one made for the purpose, in less time than it saves."""
    if isinstance(index, faiss.IndexIVF):
        return index
    spec = IndexSpec()
    lists = new_index(vectors_ND, "ivf", spec)
    add_vectors(lists, vectors_ND, spec.rows_per_part, map_in_threads)
    return lists


def _lists_to_probe(index: Any, vectors_ND: Floats, threshold: float) -> np.ndarray:
    """How many lists, the nearest first, hold all that is at least ``threshold`` alike to each vector.

    A vector v stands in the list whose centroid c has the largest product with it. If v is at most r from u, no
    product of v with a unit vector differs by more than r from that of u; so the product of u with v's centroid is
    at most 2 r below the largest that u has with any.
    """
    centroids_LD = np.asarray(index.quantizer.reconstruct_n(0, index.nlist), np.float32)
    reach = 2 * np.sqrt(2 - 2 * threshold + 2 * _TOLERANCE) * np.linalg.norm(centroids_LD, axis=1).max()
    counts = []
    for start in range(0, len(vectors_ND), _ROWS_AT_ONCE):
        products_QL = vectors_ND[start : start + _ROWS_AT_ONCE] @ centroids_LD.T
        nearest_Q1 = products_QL.max(axis=1, keepdims=True)
        counts.append((products_QL >= nearest_Q1 - reach - _TOLERANCE).sum(axis=1))
    return np.concatenate(counts)

"""Search: the images of a published version that are nearest to a picture, among those that a filter lets through."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.errors import InputError
from damage_atlas.faiss_index import search_index
from damage_atlas.query.published import PLACE_COLUMNS, Published, load_published, published_run
from damage_atlas.store import Store

NOISE = "noise"


def search(
    store: Store | str,
    archive: str,
    image: str | Path,
    k: int = 10,
    *,
    asset: str | None = None,
    label: str | None = None,
    cluster: int | str | None = None,
    since: date | str | None = None,
    until: date | str | None = None,
) -> list[dict[str, Any]]:
    """The ``k`` images of the archive's current version that are nearest to ``image``.

    Without a filter the index answers, with the recall that its artifact states. With filters, which an observation
    must pass all, the answer is exact. The index stays in memory for the next call.

    Args:
        image: a file, a URI, or an image_id of the archive. A file is looked at as a whole, however large it is; a
            place in a large photo is asked for by the image_id of its tile.
        asset: asset_id.
        label: a class, given or predicted; an image with several labels has each of them.
        cluster: cluster_id, or "noise".
        since: captured on this day or at this time, or later; ISO 8601, UTC unless it says otherwise. Images that do
            not say when they were captured do not pass.
        until: captured on this day or at this time, or earlier.

    Returns:
        Rows, best first: rank, similarity (cosine), then what is known of the first observation of these pixels that
        passes the filters: image_id, uri, tile_x, tile_y, tile_width, tile_height (pixels; None for a whole image),
        frame_time_s, position_m, captured_at, asset_id, delivery, x and y (on the map), cluster_id (None for noise),
        label; and observations, how many pass. Fewer than ``k`` when fewer pass.

    Raises:
        InputError: no such archive, image, asset, label or cluster; a date that is none; a file that is no picture.
        ContractError: the index is damaged.
    """
    store = store if isinstance(store, Store) else Store(store)
    if k < 1:
        raise InputError(f"-k {k}: ask for at least one image.")
    published = load_published(published_run(store, archive))
    passing_O = _passing(published, asset, label, cluster, since, until)
    vector = _vector_of(published, str(image))[None]
    if passing_O is None:
        matching = published.observations
        near = search_index(published.searchable(k), vector, k)
    else:
        matching = published.observations.filter(pa.array(passing_O))
        among = np.zeros(len(published.index.ids), bool)
        among[matching["row"].to_numpy()] = True
        near = search_index(published.index.faiss_index, vector, k, among)
    found = [row for row in near.ids_NK[0].tolist() if row >= 0]
    first, counts = _observations_of(matching, found)
    return [
        {"rank": rank, "similarity": round(min(float(similarity), 1.0), 6), **first[row], "observations": counts[row]}
        for rank, row, similarity in zip(itertools.count(1), found, near.similarities_NK[0], strict=False)
    ]


def _vector_of(published: Published, image: str) -> np.ndarray:
    known = published.observations.filter(pc.equal(published.observations["uri"], image))
    if known.num_rows:  # as the report and the search print it, which leads to a member or a frame as well
        return published.index.vector(known["row"][0].as_py())
    try:
        return published.index.vector(published.index.ids.index(image))
    except ValueError:
        return published.embed(image)


def _observations_of(matching: pa.Table, rows: list[int]) -> tuple[dict[int, dict[str, Any]], Counter[int]]:
    table = matching.filter(pc.is_in(matching["row"], value_set=pa.array(rows, pa.int32())))
    first: dict[int, dict[str, Any]] = {}
    for row, place in zip(table["row"].to_pylist(), table.select(PLACE_COLUMNS).to_pylist(), strict=True):
        first.setdefault(row, place)
    return first, Counter(table["row"].to_pylist())


def _passing(
    published: Published,
    asset: str | None,
    label: str | None,
    cluster: int | str | None,
    since: date | str | None,
    until: date | str | None,
) -> np.ndarray | None:
    """Which observations pass all filters; None without a filter."""
    table = published.observations
    tests = []
    if asset is not None:
        _refuse_unknown("--asset", asset, _values(table, "asset_id"), published)
        tests.append(pc.equal(table["asset_id"], asset))
    if label is not None:
        carrying = {value: value.split("+") for value in _values(table, "label")}
        _refuse_unknown("--label", label, {*itertools.chain(*carrying.values()), *carrying}, published)
        wanted = [value for value, parts in carrying.items() if label in (value, *parts)]
        tests.append(pc.is_in(table["label"], value_set=pa.array(wanted, pa.string())))
    if cluster is not None:
        tests.append(_in_cluster(published, str(cluster)))
    if since is not None or until is not None:
        tests += _captured(published, since, until)
    if not tests:
        return None
    return np.logical_and.reduce([pc.fill_null(test, False).to_numpy() for test in tests])


def _in_cluster(published: Published, cluster: str) -> pa.ChunkedArray:
    column = published.observations["cluster_id"]
    if cluster == NOISE:
        return pc.is_null(column)
    known = {str(value) for value in _values(published.observations, "cluster_id")}
    _refuse_unknown("--cluster", cluster, known | {NOISE}, published)
    return pc.equal(column, int(cluster))


def _captured(published: Published, since: date | str | None, until: date | str | None) -> list[pa.ChunkedArray]:
    column = published.observations["captured_at"]
    start = None if since is None else _moment("--since", since)
    end = None if until is None else _moment("--until", until, end_of_day=True)
    if start and end and end < start:
        raise InputError(f"--since {since} is after --until {until}: nothing can lie between.")
    if column.null_count == len(column):
        raise InputError(
            f"no image of {published.run.spec.archive} says when it was captured. Leave out --since and --until."
        )
    tests = []
    if start:
        tests.append(pc.greater_equal(column, pa.scalar(start, column.type)))
    if end:
        tests.append(pc.less_equal(column, pa.scalar(end, column.type)))
    return tests


def _moment(option: str, value: date | str, end_of_day: bool = False) -> datetime:
    try:
        # A day is written shorter than any time, and a datetime is a date as well.
        is_day = len(value) <= len("2026-03-01") if isinstance(value, str) else not isinstance(value, datetime)
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise InputError(f"{option} {value}: not a date. Write 2026-03-01, or 2026-03-01T14:30.") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment + timedelta(days=1, microseconds=-1) if is_day and end_of_day else moment


def _values(table: pa.Table, column: str) -> list[Any]:
    return [value for value in pc.unique(table[column]).to_pylist() if value is not None]


def _refuse_unknown(option: str, value: str, known: Iterable[str], published: Published) -> None:
    names = sorted(set(known))
    if value not in names:
        close = difflib.get_close_matches(value, names, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(names[:5]) or 'none'}."
        more = " …" if len(names) > 5 and not close else ""
        raise InputError(f"{option} {value}: not in the current version of {published.run.spec.archive}. {hint}{more}")

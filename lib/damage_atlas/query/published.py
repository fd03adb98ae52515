"""A published version as questions need it: its index and its observations, loaded once in a process."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.errors import ContractError, InputError, ObjectNotFoundError
from damage_atlas.faiss_index import GPU_LIMIT, ArchiveIndex, on_gpu, read_index
from damage_atlas.images import ImageError, Limits, decode, preprocess
from damage_atlas.neighbours import Floats, read_vectors
from damage_atlas.network import EmbeddingNet, embed_pixels, load_network, resolve_precision
from damage_atlas.store import Run, Store, read_version
from damage_atlas.store.objects import beside
from damage_atlas.store.runs import read_output, table_from_bytes
from damage_atlas.store.versions import run_model

logger = logging.getLogger(__name__)

# What is told of an observation: where it lies in its photo, in the archive and on the map.
_OF_THE_CATALOG = (
    "tile_x", "tile_y", "tile_width", "tile_height", "frame_time_s", "position_m", "captured_at",
)  # fmt: skip
PLACE_COLUMNS = (
    "image_id", "uri", *_OF_THE_CATALOG, "asset_id", "delivery", "x", "y", "cluster_id", "label",
)  # fmt: skip
_KEPT_AT_MOST = 2  # versions: one that is asked, and one that it is compared with

_kept: OrderedDict[tuple[str, ...], Published] = OrderedDict()
_lock = threading.Lock()


def published_run(store: Store, archive: str, version: int | None = None) -> Run:
    """The run behind a version; the current one by default."""
    return Run.load(store.uri(read_version(store, archive, version).run_key))


@dataclass(frozen=True)
class Published:
    """What a version holds.

    Attributes:
        observations: one row for each readable observation, in the order of the catalog: ``PLACE_COLUMNS``, and
            ``row``, the row of its pixels in the index. Observations of the same pixels share a row.
    """

    run: Run
    index: ArchiveIndex
    observations: pa.Table

    @property
    def rows_O(self) -> np.ndarray:
        """The index row of each observation."""
        return np.asarray(self.observations["row"].to_numpy())

    def searchable(self, k: int) -> Any:
        """The index where it answers fastest: on a GPU, if FAISS has one and ``k`` answers are not too many for it."""
        return self.index.faiss_index if k > GPU_LIMIT else self._on_gpu

    @cached_property
    def _on_gpu(self) -> Any:
        return on_gpu(self.index.faiss_index)

    @cached_property
    def network(self) -> EmbeddingNet:
        """The network that made the vectors."""
        card = run_model(self.run)
        return load_network(read_output(self.run.store, card.weights), card.network)

    def embed(self, image: str) -> Floats:
        """The vector (D) of a picture file, which is looked at as a whole, however large it is.

        Raises:
            InputError: there is no such file, or it is no picture.
        """
        if (card := run_model(self.run)).is_given:
            raise InputError(
                f"{self.run.spec.archive} holds vectors that another model made ({card.model}@{card.version}); it is "
                "not here to look at a new picture. Ask with an image_id, as `search --json` prints it."
            )
        folder, name = beside(image)
        settings = self.run.spec.settings
        try:
            pixels = decode(Store(folder).read(name), Limits.of(settings.catalog))
        except ObjectNotFoundError as error:
            raise InputError(
                f"{image} is neither a file nor an image_id of {self.run.spec.archive}. Check the name; `search` takes "
                "a path, a URI, or an image_id as `search --json` prints it."
            ) from error
        except ImageError as error:
            raise InputError(f"{image} cannot be read as a picture ({error.reason}: {error.detail}).") from error
        dtype = resolve_precision(settings.embed.precision, next(self.network.parameters()).device)
        batch = preprocess(pixels, self.network.input_size)[None]
        return embed_pixels(self.network, batch, settings.embed.batch_size, dtype)[0]


def load_published(run: Run) -> Published:
    """The run's index and observations; from memory, when this process has read the very same artifacts lately.

    Raises:
        ContractError: a table is missing, or not what was sealed; or the index is, and the vectors are as well.
    """
    key = tuple(run.store.digest(f"{run.key}/{stage}/artifact.json") for stage in ("index", "cluster"))
    with _lock:
        if key not in _kept:
            index = _sealed_index(run)
            if index is None:
                return _with(run, _exact_index(run))  # not kept: the index may be put back
            _kept[key] = _with(run, index)
            while len(_kept) > _KEPT_AT_MOST:
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        return _kept[key]


def _sealed_index(run: Run) -> ArchiveIndex | None:
    """The index; None, and a word about it, where what was sealed is damaged or gone."""
    run.artifact("index")  # without it nothing was sealed
    try:
        return read_index(run)
    except ContractError as error:
        logger.warning("%s Or start a new run; meanwhile the stored vectors are searched, exactly.", error.message)
        return None


def _exact_index(run: Run) -> ArchiveIndex:
    ids, vectors = read_vectors(run)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    return ArchiveIndex(ids, index)


def _with(run: Run, index: ArchiveIndex) -> Published:
    table = run.read_table("cluster", "points.parquet")
    columns = ["observation_id", *_OF_THE_CATALOG]
    catalog = table_from_bytes(run.read("catalog", "observations.parquet"), columns)
    beside = catalog.take(pc.index_in(table["observation_id"], value_set=catalog["observation_id"]))
    for name in _OF_THE_CATALOG:
        table = table.append_column(name, beside[name])
    rows = pc.index_in(table["image_id"], value_set=pa.array(index.ids, pa.string()))
    return Published(run, index, table.select(PLACE_COLUMNS).append_column("row", rows))

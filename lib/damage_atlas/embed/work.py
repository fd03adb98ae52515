"""Decode, preprocess and forward one part; the same code on a thread, in a test, and in a Ray actor."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from damage_atlas.contracts import Output, vectors_schema
from damage_atlas.embed.part import part_bytes, read_part
from damage_atlas.embed.plan import ImageRow, VectorPart, model_of
from damage_atlas.errors import ObjectNotFoundError
from damage_atlas.images import ImageError, Limits, PhotoReader, Tile, preprocess
from damage_atlas.network import embed_pixels, load_network, resolve_precision
from damage_atlas.store import Run, Store
from damage_atlas.store.objects import sha256
from damage_atlas.store.runs import read_output


@dataclass(frozen=True)
class PartResult:
    """A part that is in the store: its object, and the images that could not be embedded."""

    output: Output
    failed: tuple[dict[str, str], ...]  # image_id, reason, detail


class EmbedPart:
    """Embeds a part and puts it into the store; loads the model once, when first called.

    Args:
        run_uri: the run; it says which model, which images and which settings.
        device: where the network runs.
    """

    def __init__(self, run_uri: str, device: str = "cpu") -> None:
        self.run_uri, self.device = run_uri, device
        self._lock = threading.Lock()
        self._loaded = False

    def _load(self) -> None:
        with self._lock:
            if self._loaded:
                return
            self.run = Run.load(self.run_uri)
            settings = self.run.spec.settings
            self.spec = settings.embed
            card = model_of(self.run)
            self.network = load_network(read_output(self.run.store, card.weights), card.network, self.device)
            self.dtype = resolve_precision(self.spec.precision, torch.device(self.device))
            self.limits = Limits.of(settings.catalog)
            self._loaded = True

    def __call__(self, part: VectorPart) -> PartResult:
        """Embed ``part``, unless it is in the store already."""
        self._load()
        # Per thread: torch keeps the number of threads for each of the callers' threads.
        torch.set_num_threads(self.spec.threads_per_actor)
        store = self.run.store
        with suppress(ObjectNotFoundError):
            return _stored(store, part.key, store.read(part.key))
        kept, pixels, failed = self._decode(part.rows)
        vectors = embed_pixels(self.network, pixels, self.spec.batch_size, self.dtype)
        size = self.network.embedding_size
        table = pa.Table.from_arrays(
            [pa.array(kept, pa.string()), pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), size)],
            schema=vectors_schema(size),
        )
        data = part_bytes(table, failed)
        store.create_same(part.key, data)
        return _stored(store, part.key, data)

    def _decode(self, rows: tuple[ImageRow, ...]) -> tuple[list[str], np.ndarray, list[dict[str, str]]]:
        reader = PhotoReader(self.run.spec.images, self.limits)
        size = self.network.input_size
        pixels = np.empty((len(rows), size, size, 3), np.uint8)
        kept: list[str] = []
        failed: list[dict[str, str]] = []
        for row in rows:
            try:
                picture = reader.read(row["file"], row["sha256"], Tile.of_row(row))
            except ImageError as error:
                failed.append({"image_id": row["image_id"], "reason": error.reason, "detail": error.detail})
                continue
            pixels[len(kept)] = preprocess(picture, size)
            kept.append(row["image_id"])
        return kept, pixels[: len(kept)], failed


def _stored(store: Store, key: str, data: bytes) -> PartResult:
    table, failed = read_part(data, store.uri(key))
    output = Output(key=key, sha256=sha256(data), size_bytes=len(data), rows=table.num_rows)
    return PartResult(output, tuple(failed))

"""Decode and preprocess one part, forward it: two steps, on a thread, in a test, or in Ray's workers."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from damage_atlas.contracts import Output, vectors_schema
from damage_atlas.embed.part import part_bytes, part_name, read_part
from damage_atlas.embed.plan import VectorPart, model_of
from damage_atlas.errors import ObjectExistsError
from damage_atlas.images import ImageError, Limits, PhotoReader, Pixels, Source, preprocess
from damage_atlas.network import Embedder, load_network, resolve_precision
from damage_atlas.store import Run, Store
from damage_atlas.store.objects import sha256
from damage_atlas.store.runs import read_output

Failures = list[dict[str, str]]  # image_id, reason, detail


@dataclass(frozen=True)
class PartResult:
    """A part that was worked through: its object in the store, and the images that could not be embedded.

    Attributes:
        key: as planned.
        output: named by the images it holds; None where it would hold none.
    """

    key: str
    output: Output | None
    failed: tuple[dict[str, str], ...]  # image_id, reason, detail


@dataclass(frozen=True)
class DecodedPart:
    """A part's images as the network wants them.

    Attributes:
        pixels_NSSC: uint8, N x size x size x 3.
        is_stored: the part is in the store already: nothing was decoded.
    """

    key: str
    image_ids: list[str]
    pixels_NSSC: Pixels
    failed: Failures
    is_stored: bool = False


class DecodePart:
    """Decodes and preprocesses the images of a part, unless its vectors are in the store already.

    Args:
        run_uri: the run; it says which images, and how they are judged.
    """

    def __init__(self, run_uri: str) -> None:
        self.run = Run.load(run_uri)
        self.limits = Limits.of(self.run.spec.settings.catalog)
        self.size = model_of(self.run).preprocessing["size"]

    def __call__(self, part: VectorPart) -> DecodedPart:
        """The part's pixels; images that cannot be read any more are among ``failed``."""
        shape = (self.size, self.size, 3)
        if self.run.store.exists(part.key):
            return DecodedPart(part.key, [], np.empty((0, *shape), np.uint8), [], is_stored=True)
        pixels = np.empty((part.size, *shape), np.uint8)
        kept: list[str] = []
        failed: Failures = []
        with PhotoReader(self.run.spec.images, self.limits) as reader:
            rows = part.rows(self.run.store)
            for row, picture in zip(rows, reader.read_each([Source.of_row(row) for row in rows]), strict=True):
                if isinstance(picture, ImageError):
                    failed.append({"image_id": row["image_id"], "reason": picture.reason, "detail": picture.detail})
                else:
                    pixels[len(kept)] = preprocess(picture, self.size)
                    kept.append(row["image_id"])
        return DecodedPart(part.key, kept, pixels[: len(kept)], failed)


@lru_cache(maxsize=1)
def decoder_of(run_uri: str) -> DecodePart:
    """The run's ``DecodePart``, shared by the tasks of a process."""
    return DecodePart(run_uri)


class ForwardPart:
    """Embeds a decoded part and puts it into the store.

    Args:
        run_uri: the run; it says which model, and with which settings.
        device: where the network runs.
    """

    def __init__(self, run_uri: str, device: str = "cpu") -> None:
        self.run = Run.load(run_uri)
        self.spec = self.run.spec.settings.embed
        card = model_of(self.run)
        network = load_network(read_output(self.run.store, card.weights), card.network, device)
        self.embed = Embedder(
            network, self.spec.batch_size, resolve_precision(self.spec.precision, torch.device(device))
        )

    def __call__(self, decoded: DecodedPart) -> PartResult:
        """The part in the store."""
        store = self.run.store
        if decoded.is_stored:
            return PartResult(decoded.key, described(store, decoded.key, store.read(decoded.key)), ())
        if not decoded.image_ids:
            return PartResult(decoded.key, None, tuple(decoded.failed))
        # Per thread: torch keeps the number of threads for each of the callers' threads.
        torch.set_num_threads(self.spec.threads_per_actor)
        vectors = self.embed(decoded.pixels_NSSC)
        output = put_part(store, decoded.key.rpartition("/")[0], decoded.image_ids, vectors)
        return PartResult(decoded.key, output, tuple(decoded.failed))


class EmbedPart:
    """Both steps one after the other, for threads: what they need is loaded once, when first called."""

    def __init__(self, run_uri: str) -> None:
        self.run_uri = run_uri
        self._lock = threading.Lock()
        self._steps: tuple[DecodePart, ForwardPart] | None = None

    def __call__(self, part: VectorPart) -> PartResult:
        """Embed ``part``, unless it is in the store already."""
        with self._lock:
            if self._steps is None:
                self._steps = DecodePart(self.run_uri), ForwardPart(self.run_uri)
            decode, forward = self._steps
        return forward(decode(part))


def put_part(store: Store, folder: str, image_ids: list[str], vectors_ND: NDArray[np.float32]) -> Output:
    """Put the images' vectors into the store as a part; of two with the same images the first one counts."""
    size = vectors_ND.shape[1]
    table = pa.Table.from_arrays(
        [pa.array(image_ids, pa.string()), pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), size)],
        schema=vectors_schema(size),
    )
    # A part that lacks images has another name, so that whoever plans these images again tries them again.
    key = f"{folder}/{part_name(image_ids)}"
    data = part_bytes(table)
    try:
        store.create(key, data)
    except ObjectExistsError:
        data = store.read(key)  # another's vectors, maybe from another kind of machine: one of them counts
    return described(store, key, data)


def described(store: Store, key: str, data: bytes) -> Output:
    """A stored part as artifacts list it."""
    rows = read_part(data, store.uri(key)).num_rows
    return Output(key=key, sha256=sha256(data), size_bytes=len(data), rows=rows)

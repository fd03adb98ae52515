"""Whether a new model version is worse than the one in use: both look at the images that the new one held out."""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from damage_atlas.contracts import ModelCard
from damage_atlas.errors import ContractError, InputError
from damage_atlas.images import Limits
from damage_atlas.metrics import knn_predict
from damage_atlas.network import EmbeddingNet, load_network
from damage_atlas.store import Run, resolve_model
from damage_atlas.store.runs import read_output
from damage_atlas.train.data import LabelledImages, Pixels
from damage_atlas.train.evaluate import Floats, Ints, embed_rows

logger = logging.getLogger(__name__)

_MOST_IMAGES = 5000  # of each split
_WORSE = 0.05  # of accuracy: so much worse, a version does not come into use whatever chance may explain
_HARDLY_WORSE = 0.01  # so much is another seed's doing, however sure it is
_ONE_SIDED_95 = 1.645


@dataclass(frozen=True)
class Comparison:
    """kNN accuracy of the new version and of the one in use, on the same held-out images.

    Attributes:
        version: the one in use.
        is_worse: whether the new one is worse by more than 0.05, or by more than 0.01 and than chance explains.
    """

    version: str
    accuracy: float
    accuracy_before: float
    is_worse: bool


def compare_with_current(
    run: Run, images: LabelledImages, vectors_ND: Floats, pixels: Pixels, device: torch.device | str = "cpu"
) -> Comparison | None:
    """Embed the held-out images, and the training images that tell their classes, by the model in use too.

    None where nothing is in use yet, nothing is held out, or the model in use cannot be read any more.

    Args:
        vectors_ND: of ``images``, by the new version.
        pixels: of ``images``, in the new version's size.
        device: where the model in use is computed.
    """
    draw = np.random.default_rng(run.spec.settings.train.seed)
    reference, queries = (
        np.sort(draw.permutation(images.rows_of(split))[:_MOST_IMAGES]) for split in ("train", "test")
    )
    current = _current(run, device)
    if current is None or len(queries) == 0:
        return None
    card, network = current
    rows = np.concatenate([reference, queries])
    before = _embedded(run, images, rows, pixels, network)
    labels = np.array(images.labels)

    def is_right(of_reference: Floats, of_queries: Floats) -> NDArray[np.bool_]:
        return knn_predict(of_reference, labels[reference].tolist(), of_queries) == labels[queries]

    right = is_right(vectors_ND[reference], vectors_ND[queries])
    was_right = is_right(before[: len(reference)], before[len(reference) :])
    groups = [images.groups[row] if images.groups else images.image_ids[row] for row in queries]
    return Comparison(card.version, float(right.mean()), float(was_right.mean()), is_worse(right, was_right, groups))


def is_worse(right_Q: NDArray[np.bool_], was_right_Q: NDArray[np.bool_], groups_Q: list[str]) -> bool:
    """Whether there are more images that only the earlier one gets right, beyond chance and beyond what matters.

    With every image a group of its own this is McNemar's test, one-sided at 5%; images of a group count together.
    """
    lost: Counter[str] = Counter()
    for group, now, before in zip(groups_Q, right_Q.tolist(), was_right_Q.tolist(), strict=True):
        lost[group] += before - now
    total = sum(lost.values())
    drop = total / len(groups_Q)
    by_chance = _ONE_SIDED_95 * math.sqrt(sum(each**2 for each in lost.values()))
    return drop > _WORSE or (drop > _HARDLY_WORSE and total > by_chance)


def _current(run: Run, device: torch.device | str) -> tuple[ModelCard, EmbeddingNet] | None:
    try:
        card = resolve_model(run.store, run.spec.model.partition("@")[0])
    except InputError:
        return None  # nothing was promoted yet
    if card.version == run.spec.run_id or card.is_given:  # a retry, after the promotion; vectors without a network
        return None
    try:
        return card, load_network(read_output(run.store, card.weights), card.network, device)
    except (ContractError, InputError) as error:
        logger.warning("train: %s@%s, which is in use, cannot be compared with: %s", card.model, card.version, error)
        return None


def _embedded(run: Run, images: LabelledImages, rows: Ints, pixels: Pixels, network: EmbeddingNet) -> Floats:
    spec = run.spec.settings.train
    if network.input_size == pixels.input_size:
        return embed_rows(network, pixels, rows, spec)
    with Pixels(images, run.spec.images, network.input_size, Limits.of(run.spec.settings.catalog)) as others:
        return embed_rows(network, others, rows, spec)

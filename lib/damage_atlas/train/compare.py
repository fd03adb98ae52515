"""Whether a new model version is worse than the one in use: both look at the images that the new one held out."""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from damage_atlas.contracts import ModelCard
from damage_atlas.errors import InputError
from damage_atlas.images import Limits
from damage_atlas.metrics import knn_predict
from damage_atlas.network import EmbeddingNet, load_network
from damage_atlas.store import Run, resolve_model
from damage_atlas.store.runs import read_output
from damage_atlas.store.versions import read_reference
from damage_atlas.train.data import LabelledImages, Pixels
from damage_atlas.train.evaluate import Floats, Ints, embed_rows

logger = logging.getLogger(__name__)

_MOST_IMAGES = 5000  # of each split
_FEWEST_IMAGES = 5  # held out by both: fewer say nothing
_WORSE = 0.05  # of accuracy: so much worse, a version does not come into use whatever chance may explain
_HARDLY_WORSE = 0.01  # so much is another seed's doing, however sure it is
_ONE_SIDED_95 = 1.645


@dataclass(frozen=True)
class Comparison:
    """kNN accuracy of the new version and of the one in use, on the same held-out images.

    Attributes:
        version: the one in use.
        images: that neither of them has learnt from.
        is_worse: whether the new one is worse by more than 0.05, or by more than 0.01 and than chance explains.
    """

    version: str
    images: int
    accuracy: float
    accuracy_before: float
    is_worse: bool


def compare_with_current(
    run: Run, images: LabelledImages, vectors_ND: Floats, pixels: Pixels, device: torch.device | str = "cpu"
) -> Comparison | None:
    """Embed the held-out images, and the training images that tell their classes, by the model in use too.

    Splits are dealt anew for every catalog, so that some of what is held out now taught the model in use: such groups
    are left out. None where nothing is in use yet, too little is left, or the model in use fails, whatever the reason:
    a training that has ended well is to be registered.

    Args:
        vectors_ND: of ``images``, by the new version.
        pixels: of ``images``, in the new version's size.
        device: where the model in use is computed.
    """
    try:
        card = _in_use(run)
        return None if card is None else _compare(run, card, images, vectors_ND, pixels, device)
    except Exception as error:  # of a backbone, a device, a store: anything
        logger.warning("train: no comparison with the version of %s in use: %r", run.spec.model, error)
        return None


def _compare(
    run: Run, card: ModelCard, images: LabelledImages, vectors_ND: Floats, pixels: Pixels, device: torch.device | str
) -> Comparison | None:
    draw = np.random.default_rng(run.spec.settings.train.seed)
    groups, labels = np.array(images.groups or images.image_ids), np.array(images.labels)
    held_out = images.rows_of("test")
    held_out = held_out[~np.isin(groups[held_out], _groups_that_taught(run, card, images, groups))]
    if len(held_out) < _FEWEST_IMAGES:
        return None
    reference, queries = (np.sort(draw.permutation(rows)[:_MOST_IMAGES]) for rows in (images.training_rows, held_out))
    network = load_network(read_output(run.store, card.weights), card.network, device)
    before = _embedded(run, images, np.concatenate([reference, queries]), pixels, network)

    def is_right(of_reference: Floats, of_queries: Floats) -> NDArray[np.bool_]:
        return knn_predict(of_reference, labels[reference].tolist(), of_queries) == labels[queries]

    right = is_right(vectors_ND[reference], vectors_ND[queries])
    was_right = is_right(before[: len(reference)], before[len(reference) :])
    worse = is_worse(right, was_right, groups[queries].tolist())
    return Comparison(card.version, len(queries), float(right.mean()), float(was_right.mean()), worse)


def is_worse(right_Q: NDArray[np.bool_], was_right_Q: NDArray[np.bool_], groups_Q: list[str]) -> bool:
    """Whether there are more images that only the earlier one gets right, beyond chance and beyond what matters.

    With every image a group of its own this is McNemar's test, one-sided at 5%, with the correction for continuity;
    images of a group count together.
    """
    lost: Counter[str] = Counter()
    for group, now, before in zip(groups_Q, right_Q.tolist(), was_right_Q.tolist(), strict=True):
        lost[group] += before - now
    total = sum(lost.values())
    drop = total / len(groups_Q)
    by_chance = _ONE_SIDED_95 * math.sqrt(sum(each**2 for each in lost.values()))
    return drop > _WORSE or (drop > _HARDLY_WORSE and total - 1 > by_chance)


def _in_use(run: Run) -> ModelCard | None:
    try:
        card = resolve_model(run.store, run.spec.model.partition("@")[0])
    except InputError:
        return None  # nothing was promoted yet
    # A retry, after the promotion; or vectors without a network.
    return None if card.version == run.spec.run_id or card.is_given else card


def _groups_that_taught(run: Run, card: ModelCard, images: LabelledImages, groups_N: NDArray[np.str_]) -> list[str]:
    table = read_reference(run.store, card)
    taught = set(table.filter(pc.equal(table["split"], "train"))["image_id"].to_pylist())
    return [group for group, image_id in zip(groups_N.tolist(), images.image_ids, strict=True) if image_id in taught]


def _embedded(run: Run, images: LabelledImages, rows: Ints, pixels: Pixels, network: EmbeddingNet) -> Floats:
    spec = run.spec.settings.train
    if network.input_size == pixels.input_size:
        return embed_rows(network, pixels, rows, spec)
    some, limits = images.take(rows), Limits.of(run.spec.settings.catalog)
    with Pixels(some, run.spec.images, network.input_size, limits) as others:
        return embed_rows(network, others, np.arange(len(rows)), spec)

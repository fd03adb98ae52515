"""Baselines: other losses on the same network, and features that nobody learnt, all on the same split.

The losses are pytorch-metric-learning's. Network, batches, augmentation, optimizer and number of steps are those of the
settings for all of them; for each, the best of the given learning rates is chosen on a validation part of the training
split, and only then are the held-out images looked at.

Axes: N images, B a batch, D embedding dimensions, F features, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning import losses
from sklearn.preprocessing import StandardScaler
from torch import nn

from damage_atlas.experiments.data import with_validation
from damage_atlas.experiments.log import MeasurementLog, Row, deciding
from damage_atlas.experiments.subclasses import Floats, train_vectors
from damage_atlas.metrics import knn_accuracy
from damage_atlas.network import best_device, fixed_threads, resolve_precision
from damage_atlas.parts import plan_parts
from damage_atlas.spec import TrainSpec
from damage_atlas.train.augment import augment_on
from damage_atlas.train.data import LabelledImages, Pixels
from damage_atlas.train.evaluate import embed_rows, held_out_scores
from damage_atlas.train.loop import learning_rate, refuse_diverged_weights, refuse_divergence
from damage_atlas.train.sampling import BalancedBatches
from damage_atlas.train.start import new_network

OURS = "mn_pair"
CLASSICAL = "texture and colour"
LOSSES: dict[str, Callable[[int, int], nn.Module]] = {
    "cross-entropy": lambda classes, dimensions: losses.NormalizedSoftmaxLoss(classes, dimensions),
    "NT-Xent": lambda classes, dimensions: losses.NTXentLoss(),
    "SupCon": lambda classes, dimensions: losses.SupConLoss(),
    "multi-similarity": lambda classes, dimensions: losses.MultiSimilarityLoss(),
}
FROZEN = "frozen backbone"
METHODS = (OURS, *LOSSES, CLASSICAL)  # that any network can be compared with
_LEARN_NOTHING = (CLASSICAL, FROZEN)

_COLOUR_BINS = 16
_RADII = (1, 2, 4)  # of local binary patterns, pixels
_AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def compare_baselines(
    images: LabelledImages,
    pixels: Pixels,
    spec: TrainSpec,
    methods: Sequence[str],
    seeds: Sequence[int],
    learning_rates: Sequence[float],
    file: Path,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Held-out scores of each method and seed: what ``file`` lacks is measured, and added to it.

    Args:
        learning_rates: tried for each learnt method, with the first seed, on a validation part; one is taken as it is.
        on_row: called with each row.
    """
    log, rows = MeasurementLog(file), []
    data: Row = {"images": images.image_ids, "labels": images.labels, "splits": images.splits}
    if best_device().type != "cpu":
        data["device"] = best_device().type  # on CPUs it is not said, as in rows that were measured before
    if spec.schedule != "constant":
        data["schedule"] = "followed"  # losses of others were trained at a constant rate once
    for method in methods:
        rate = None if method in _LEARN_NOTHING else learning_rates[0]
        if rate is not None and len(learning_rates) > 1:
            found, inner = [], with_validation(images, spec.seed)
            for tried in learning_rates:
                asked = spec.model_copy(update={"learning_rate": tried, "seed": seeds[0]})

                def validate(method: str = method, asked: TrainSpec = asked, inner: LabelledImages = inner) -> Row:
                    return {"validation_knn": _knn(inner, vectors_of(method, inner, pixels, asked))}

                decides = {
                    **data,
                    "method": method,
                    "train": deciding(asked),
                    "tuning": True,
                    "validation": inner.splits,
                }
                names = {"method": method, "tuning": True, "learning_rate": tried, "seed": seeds[0]}
                found.append(log.measured(decides, names, validate))
            # One at which training diverged comes last.
            rate = max(found, key=lambda row: row.get("validation_knn", -1.0))["learning_rate"]
        for seed in seeds:
            asked = spec.model_copy(update={"seed": seed, **({} if rate is None else {"learning_rate": rate})})

            def measure(method: str = method, asked: TrainSpec = asked) -> Row:
                return held_out_scores(images, vectors_of(method, images, pixels, asked))

            decides = {
                **data,
                "method": method,
                "train": deciding(asked),
                "tuning": False,
            }
            names = {"method": method, "tuning": False, "learning_rate": rate, "seed": seed}
            rows.append(log.measured(decides, names, measure))
            on_row(rows[-1])
    return rows


def _knn(images: LabelledImages, vectors_ND: Floats) -> float:
    train, test = images.training_rows, images.rows_of("test")
    truth = [images.labels[row] for row in test]
    return knn_accuracy(vectors_ND[train], images.training_labels, vectors_ND[test], truth)


def methods_for(spec: TrainSpec) -> tuple[str, ...]:
    """All that can be compared under these settings: with a pretrained backbone also what it knows by itself."""
    return (*METHODS, FROZEN) if spec.module_weights is not None else METHODS


def vectors_of(method: str, images: LabelledImages, pixels: Pixels, spec: TrainSpec) -> Floats:
    """Vectors of unit length of all images by one of ``methods_for``: N x D.

    Raises:
        ValueError: an unknown method.
    """
    if method == FROZEN:
        return _frozen(pixels, spec, len(images))
    if method == OURS:
        return train_vectors(images, pixels, spec)
    if method == CLASSICAL:
        features = np.stack([texture_and_colour(pixels[np.array([row])][0]) for row in range(len(images))])
        scaled = StandardScaler().fit(features[images.training_rows]).transform(features)
        return (scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    if method not in LOSSES:
        raise ValueError(f"baseline {method!r} is not known; {', '.join(METHODS)} are")
    return _train_with(LOSSES[method](len(images.classes), spec.embedding_size), images, pixels, spec)


def _frozen(pixels: Pixels, spec: TrainSpec, count: int) -> Floats:
    """Feature maps of the network as it begins, averaged over places: what a backbone brings with it."""
    network, parts = new_network(spec).to(best_device()).eval(), []
    with torch.inference_mode(), fixed_threads(spec.threads_per_shard * spec.shards):
        for part in plan_parts(count, spec.batch_size):
            shown = torch.as_tensor(pixels[np.arange(count)[part.rows]], device=best_device())
            features_BMHW = network.features(network.prepare(shown))
            parts.append(nn.functional.normalize(features_BMHW.mean(dim=(2, 3))).cpu())
    return np.asarray(torch.cat(parts), np.float32)


def _train_with(criterion: nn.Module, images: LabelledImages, pixels: Pixels, spec: TrainSpec) -> Floats:
    """The plain loop: a criterion may have weights of its own, which our loop over shards does not know."""
    device = best_device()
    network = new_network(spec).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        for weights in criterion.parameters():
            nn.init.normal_(weights)  # pytorch-metric-learning draws them from the global generator
    criterion.to(device)
    optimizer = torch.optim.Adam(
        [*network.parameters(), *criterion.parameters()],
        lr=spec.learning_rate,
        betas=(spec.gradient_decay, spec.squared_gradient_decay),
        foreach=True,
    )
    rows, codes = images.training_rows, images.training_codes
    batches = BalancedBatches(codes, spec.batch_size, spec.seed)
    is_bf16 = resolve_precision(spec.precision, device) == torch.bfloat16
    network.train()
    with fixed_threads(spec.threads_per_shard * spec.shards):
        for iteration in range(spec.iterations):
            batch = batches[iteration]
            shown = augment_on(device, spec, pixels[rows[batch]], iteration=iteration, first_position=0)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
                embeddings_BD = network(network.prepare(shown))
            loss = criterion(embeddings_BD, torch.as_tensor(codes[batch], device=device))
            refuse_divergence(loss, iteration, spec)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec, iteration)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    refuse_diverged_weights(network.parameters(), spec)
    network.eval()
    return embed_rows(network, pixels, np.arange(len(images)), spec)


def texture_and_colour(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Histograms of each channel and of local binary patterns (Ojala et al. 2002) at three radii, as shares: F."""
    colour = [np.bincount(channel.ravel() * _COLOUR_BINS // 256, minlength=_COLOUR_BINS)
              for channel in pixels_HWC.transpose(2, 0, 1).astype(np.int64)]  # fmt: skip
    grey = pixels_HWC.astype(np.float64).mean(axis=2)
    texture = [np.bincount(_binary_patterns(grey, radius).ravel(), minlength=256) for radius in _RADII]
    return np.concatenate([counts / counts.sum() for counts in (*colour, *texture)])


def _binary_patterns(grey_HW: NDArray[np.float64], radius: int) -> NDArray[np.int64]:
    """For each pixel that has eight neighbours at ``radius``, a bit for each that is at least as bright."""
    height, width = grey_HW.shape
    middle = grey_HW[radius : height - radius, radius : width - radius]
    codes = np.zeros(middle.shape, np.int64)
    for bit, (down, right) in enumerate(_AROUND):
        y, x = radius * (1 + down), radius * (1 + right)
        codes |= (grey_HW[y : y + middle.shape[0], x : x + middle.shape[1]] >= middle).astype(np.int64) << bit
    return codes

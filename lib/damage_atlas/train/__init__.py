"""Train: learn an embedding of damage from labelled images, and register it as a model version.

data.py          the labelled images, decoded once
start.py         the network that a training starts with
sampling.py      class-balanced batches, or the paper's tuples
augment.py       random erasing, crops, flips, brightness
losses.py        the MN-pair loss and its relatives
loop.py          the training loop, on one worker or several
checkpoints.py   so that a run that was stopped goes on
evaluate.py      scores on the held-out split
compare.py       whether a new version is worse than the one in use
register.py      weights, card and reference vectors of a model version
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from damage_atlas.contracts import Artifact
from damage_atlas.errors import ContractError
from damage_atlas.images import Limits
from damage_atlas.network import best_device
from damage_atlas.progress import Progress
from damage_atlas.store import Run
from damage_atlas.train.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from damage_atlas.train.compare import compare_with_current
from damage_atlas.train.data import LabelledImages, Pixels
from damage_atlas.train.evaluate import embed_rows, quick_knn_accuracy
from damage_atlas.train.loop import Alone, Exchange, Trainer, TrainingState, make_batches, make_optimizer
from damage_atlas.train.register import register_model
from damage_atlas.train.start import new_network

logger = logging.getLogger(__name__)

__all__ = ["labelled_images", "sealed_training", "train_model", "train_rank"]


def train_model(run: Run, on_iteration: Callable[[TrainingState], None] | None = None) -> Artifact:
    """Train on the run's catalog in this process, on its GPU if it has one, and register the model version.

    Goes on from the newest checkpoint. ``on_iteration`` is called after each iteration, with the state.

    Raises:
        InputError: nothing to learn from.
    """
    train_rank(run, Alone(), best_device(), on_iteration)
    return sealed_training(run)


def labelled_images(run: Run) -> LabelledImages:
    """What the run learns from.

    Raises:
        InputError: nothing to learn from, or not in the batches that the settings ask for.
    """
    images = LabelledImages.from_observations(run.read_table("catalog", "observations.parquet"))
    make_batches(images.training_codes, images.label_sets, run.spec.settings.train)
    return images


def train_rank(
    run: Run,
    exchange: Exchange,
    device: torch.device | str = "cpu",
    on_iteration: Callable[[TrainingState], None] | None = None,
) -> None:
    """What each of several workers does at once; the first one writes checkpoints and registers the model version.

    Args:
        exchange: how the workers talk.
        device: where this worker's shards are computed.
    """
    stage = run.stage("train")
    if stage.sealed:
        return
    spec = run.spec.settings.train
    images = labelled_images(run)

    network = new_network(spec)
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = TrainingState(network, make_optimizer(network, spec))
    folder = f"models/{run.spec.model}/{run.spec.run_id}/checkpoints"
    # The first rank looks for all: another one might find a checkpoint that came, or miss one that went, meanwhile.
    newest = newest_checkpoint(run.store, folder) if exchange.rank == 0 else 0
    if begins_at := int(exchange.add(torch.tensor([newest], device=device))):
        load_checkpoint(run.store, folder, state, begins_at)
        logger.info("train: going on from the checkpoint at iteration %d", state.iteration)

    limits = Limits.of(run.spec.settings.catalog)
    is_writer = exchange.rank == 0
    with (
        Pixels(images, run.spec.images, spec.input_size, limits) as pixels,
        Progress("train", "iterations", spec.iterations if is_writer else 0) as progress,
    ):
        trainer = Trainer(state, pixels, images.training_rows, images.training_codes, spec, exchange, images.label_sets)
        progress.done = state.iteration

        def after_iteration(state: TrainingState) -> None:
            row = state.history[-1]
            if is_writer:
                last = state.iteration == spec.iterations
                if not last and state.iteration % spec.evaluate_every == 0:
                    row["knn_accuracy"] = quick_knn_accuracy(network, pixels, images, spec)
                progress.add(1, note=f"loss {row['loss']:.4f}, cosine {row['positive_cosine']:.2f} / "
                                     f"{row['negative_cosine']:.2f}")  # fmt: skip
                if not last and state.iteration % spec.checkpoint_every == 0:
                    save_checkpoint(run.store, folder, state)
            if on_iteration is not None:
                on_iteration(state)

        trainer.run(spec.iterations, after_iteration)
        if not is_writer:
            return
        network.eval()
        vectors = embed_rows(network, pixels, np.arange(len(images)), spec)
        # A run of all stages goes on with its own model, however good the one in use.
        decides = spec.promote == "unless_worse" and run.spec.kind != "run"
        comparison = compare_with_current(run, images, vectors, pixels, device) if decides else None
        register_model(run, stage, images, vectors, state, trainer.dtype, comparison)


def sealed_training(run: Run) -> Artifact:
    """The sealed artifact after all workers have ended; ContractError when the first one did not seal."""
    artifact = run.stage("train").sealed
    if artifact is None:
        raise ContractError(f"{run.uri}: training ended without a sealed model; see its log.", retryable=True)
    return artifact

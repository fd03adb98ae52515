"""A trained network becomes a model version: weights, reference vectors, history, and last its card."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save

from damage_atlas.contracts import HISTORY, REFERENCE, Artifact, ModelCard, Output
from damage_atlas.errors import ObjectExistsError
from damage_atlas.store import Run, Stage, load_model_card, promote_model
from damage_atlas.store.objects import sha256
from damage_atlas.store.runs import code_version, table_bytes, write_output
from damage_atlas.train.compare import Comparison
from damage_atlas.train.data import LabelledImages
from damage_atlas.train.evaluate import Floats, held_out_scores
from damage_atlas.train.loop import TrainingState
from damage_atlas.train.start import network_arguments

logger = logging.getLogger(__name__)


def register_model(
    run: Run,
    stage: Stage,
    images: LabelledImages,
    vectors_ND: Floats,
    state: TrainingState,
    dtype: torch.dtype,
    comparison: Comparison | None = None,
) -> Artifact:
    """Write the model version's objects, promote it unless it is worse, and seal the train stage.

    Args:
        vectors_ND: of ``images``, by the trained network.
        dtype: that the network was trained in.
        comparison: with the version in use; None where there is nothing to be worse than.
    """
    spec, store = run.spec.settings.train, run.store
    scores = held_out_scores(images, vectors_ND)
    if scores:
        state.history[-1]["knn_accuracy"] = scores["knn_accuracy"]
    history = pa.Table.from_pylist(state.history, HISTORY)
    weights = {name: tensor.cpu().contiguous() for name, tensor in state.network.state_dict().items()}
    reference = pa.Table.from_pydict(
        {
            "image_id": images.image_ids,
            "label": images.labels,
            "split": images.splits,
            "vector": list(vectors_ND),
        },
        REFERENCE,
    )
    folder = f"models/{run.spec.model}/{run.spec.run_id}"
    if run.attempt > 1:
        folder += f"/attempt-{run.attempt:03d}"
    for name, data, rows in (
        ("model.safetensors", save(weights), None),
        ("reference.parquet", table_bytes(reference), reference.num_rows),
        ("history.parquet", table_bytes(history), history.num_rows),
    ):
        stage.adopt(name, write_output(store, f"{folder}/{name}", data, rows))
    outputs = stage.outputs
    card = ModelCard(
        model=run.spec.model,
        version=run.spec.run_id,
        network=network_arguments(spec),
        preprocessing={"size": spec.input_size},
        classes=images.classes,
        parameters=sum(p.numel() for p in state.network.parameters()),
        weights=outputs["model.safetensors"],
        reference=outputs["reference.parquet"],
        train_spec=spec.model_dump(mode="json"),
        data_sha256=run.artifact("catalog").outputs["observations.parquet"].sha256,
        images=dict(Counter(images.splits)),
        scores=scores,
        code_version=code_version(),
    )
    # Always at the version's own place: the card names the objects of the attempt that won.
    card_key = f"models/{run.spec.model}/{run.spec.run_id}/model.json"
    try:
        store.create(card_key, card.model_dump_json(indent=1).encode())
    except ObjectExistsError:
        card = load_model_card(store, run.spec.model, run.spec.run_id)
    data = store.read(card_key)
    stage.adopt("model.json", Output(key=card_key, sha256=sha256(data), size_bytes=len(data)))
    stage.adopt("model.safetensors", card.weights)
    stage.adopt("reference.parquet", card.reference)
    kept_back = _kept_back(run, comparison)
    if kept_back:
        logger.warning("train: %s is not promoted: %s", run.spec.run_id, kept_back)
    else:
        promote_model(store, run.spec.model, run.spec.run_id, "trained")
    n = len(images)
    return stage.seal(
        inputs=("catalog",),
        counts={"in": n, "out": n, "failed": 0},
        facts={
            "model": f"{run.spec.model}@{run.spec.run_id}",
            "parameters": card.parameters,
            "classes": dict(Counter(images.labels)),
            "iterations": state.iteration,
            "images_seen": int(state.history[-1]["images_seen"]) if state.history else 0,
            "precision": str(dtype).removeprefix("torch."),
            "images_per_second": round(state.history[-1]["images_seen"] / max(state.seconds, 1e-9), 1)
            if state.history
            else 0.0,  # fmt: skip
            "final_loss": float(np.mean([row["loss"] for row in state.history[-20:]])),
            "scores": scores,
            "promoted": not kept_back,
            "kept_back": kept_back or None,
            "compared_with": comparison and comparison.version,
            "compared_images": comparison and comparison.images,
            "knn_accuracy_before": comparison and comparison.accuracy_before,
        },
    )


def _kept_back(run: Run, comparison: Comparison | None) -> str:
    """Why the version must not become the current one, on which archives are re-clustered unasked; empty if it may."""
    if run.spec.settings.train.promote == "never" and run.spec.kind != "run":  # which goes on with its own model
        return "train.promote is never"
    if comparison is None or not comparison.is_worse:
        return ""
    return (
        f"its kNN accuracy on what both held out is {comparison.accuracy:.3f}, that of {comparison.version}, which "
        f"stays, {comparison.accuracy_before:.3f} on the same images. Look at its settings, or promote it by hand: "
        f"damage-atlas promote {run.spec.model}@{run.spec.run_id}"
    )

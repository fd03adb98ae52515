"""steel-neu with one class left out of training, and the vectors of all images that were not trained on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from damage_atlas.contracts import ModelCard
from damage_atlas.errors import InputError
from damage_atlas.images import Limits, PhotoReader, Source, preprocess
from damage_atlas.neighbours import Floats
from damage_atlas.network import embed_pixels, load_network, resolve_precision
from damage_atlas.pipeline import run_pipeline
from damage_atlas.spec import CatalogSpec, Settings, TrainSpec
from damage_atlas.store import Store, resolve_model, start_run
from damage_atlas.store.runs import read_output

CLASSES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")
_TRAINED = 0.4  # share of each class that the model learns from
# A stand-in for the archive's 1,000 steps at 160 pixels: 200 at 128, to fit two cores.
_TRAINING = Settings(
    catalog=CatalogSpec(labels="folder"),
    train=TrainSpec(
        iterations=200, input_size=128, learning_rate=1e-3, schedule="cosine", standardize=True, brightness=0.0,
        erasing_probability=0.0, crop_side=0.65, shift=0.075, instance_weight=1.0, checkpoint_every=25,
        evaluate_every=200,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Embedded:
    """Images the model has not learnt from, with their classes and vectors (N x D)."""

    left_out: str
    classes: list[str]
    vectors_ND: Floats
    store: Store
    card: ModelCard


def embed_without(left_out: str, data: Path, out: Path) -> Embedded:
    """Train on 40% of every class but ``left_out``, embed all other images; what is in ``out`` already is taken.

    Args:
        data: the folder steel-neu, with a folder for each class.

    Raises:
        InputError: the folder lacks a class.
    """
    kept, store = out / f"without-{left_out}.npz", Store(out / "store")
    model = f"without-{left_out}"
    if not kept.exists():
        files = {name: sorted((data / name).glob("*.jpg")) for name in CLASSES}
        if missing := [name for name, found in files.items() if not found]:
            raise InputError(f"{data} has no images in {', '.join(missing)}. Give the folder of NEU-DET's classes.")
        folder = out / f"images-without-{left_out}"
        rest: list[tuple[str, Path]] = []
        for name, found in files.items():
            order = np.random.default_rng(0).permutation(len(found))
            cut = 0 if name == left_out else round(_TRAINED * len(found))
            rest += [(name, found[i]) for i in sorted(order[cut:])]
            for i in sorted(order[:cut]):
                target = folder / name / found[i].name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found[i], target)
        for _ in run_pipeline(
            start_run(store, kind="train", archive="steel", images=str(folder), model=model, settings=_TRAINING)
        ):
            pass
        vectors = _embed(resolve_model(store, model), store, [file.relative_to(data) for _, file in rest], data)
        np.savez(kept, classes=np.array([name for name, _ in rest]), vectors=vectors)
    with np.load(kept) as stored:
        return Embedded(left_out, stored["classes"].tolist(), stored["vectors"], store, resolve_model(store, model))


def _embed(card: ModelCard, store: Store, files: list[Path], data: Path) -> Floats:
    network = load_network(read_output(store, card.weights), card.network)
    with PhotoReader(str(data), Limits()) as reader:
        pixels = np.stack([preprocess(reader.read(Source(f.as_posix())), network.input_size) for f in files])
    return embed_pixels(network, pixels, 64, resolve_precision("auto", next(network.parameters()).device))

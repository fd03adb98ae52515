"""Ablations: one setting after another is varied around the given ones, as in section 3.1 of the paper.

A plan is a list of trials; each is a training whose row is an object of the store, named by all that decides it. So a
sweep goes on where it was stopped, several machines may share one, and what two axes have in common is measured once.

Settings are chosen by these rows, so they are scored on a validation part of the training split: the held-out images
are looked at once, by the model that is trained with what was chosen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from damage_atlas.errors import ContractError, InputError, ObjectExistsError, TrainingDivergedError
from damage_atlas.experiments.data import with_validation
from damage_atlas.experiments.log import Row, deciding, interval
from damage_atlas.experiments.subclasses import train_network
from damage_atlas.images import Limits
from damage_atlas.network import best_device, resolve_precision
from damage_atlas.spec import Settings, TrainSpec, with_overrides
from damage_atlas.store import Run, Store
from damage_atlas.train import labelled_images
from damage_atlas.train.data import LabelledImages, Pixels
from damage_atlas.train.evaluate import embed_rows, held_out_scores
from damage_atlas.train.loop import make_batches

# The paper's grids, whose values it leaves out, and the forms of loss and sampler.
GRIDS: dict[str, tuple[str, ...]] = {
    "input_size": ("128", "144", "160", "180", "200"),
    "embedding_size": ("8", "16", "32"),
    "temperature": ("0.1", "0.2", "0.3", "0.5"),
    "positive_weight": ("0.1", "0.15", "0.2", "0.3"),
    "loss": ("mn_pair", "n_pair", "supcon", "mean_of_logs"),
    "sampler": ("balanced", "tuples"),
}
SCORES = ("knn_accuracy", "linear_accuracy", "map_at_r", "images_per_s")


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        key: a digest of all that decides its scores.
        places: which values of which axes it stands for: several where it is the one that all axes go through.
        device: ``cpu`` or ``cuda``.
    """

    key: str
    train: TrainSpec
    places: tuple[tuple[str, str], ...]
    device: str = "cpu"


def parse_axes(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Each a name of ``GRIDS``, or ``KEY=VALUE,VALUE`` with a setting of ``train``.

    Raises:
        InputError: a name that is not known, an axis without values, one that is there twice, or the seed's.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, told = text.partition("=")
        name = name.strip().removeprefix("train.")
        if not equals and name not in GRIDS:
            raise InputError(
                f"axis {name!r} is not known; {', '.join(GRIDS)} are. One of your own is written {name}=1,2."
            )
        values = tuple(dict.fromkeys(v.strip() for v in told.split(",") if v.strip())) if equals else GRIDS[name]
        if not values or name in axes or name == "seed":
            why = "is there twice" if name in axes else "is set by --seeds" if name == "seed" else "has no values"
            raise InputError(f"axis {name!r} {why}.")
        axes[name] = values
    return axes


def plan_sweep(
    images: LabelledImages,
    settings: Settings,
    axes: Mapping[str, Sequence[str]],
    seeds: Iterable[int],
    device: str | None = None,
) -> list[Trial]:
    """The trials, each once, the ones that most axes go through first.

    Args:
        device: ``cpu`` or ``cuda``, where all of them are trained; by default where this process would.

    Raises:
        SpecError: a value that its setting cannot have.
        InputError: a value that these images cannot be trained with, or nothing can be held out to choose by.
    """
    device = device or best_device().type
    inner = with_validation(images, settings.train.seed).in_a_split()
    found: dict[str, Trial] = {}
    for seed in seeds:
        for axis, values in axes.items():
            for value in values:
                train = with_overrides(settings, [f"train.{axis}={value}", f"train.seed={seed}"], f"axis {axis}").train
                make_batches(inner.training_codes, inner.label_sets, train)
                # What ``auto`` is here: another node must not decide otherwise.
                train = train.model_copy(update={"precision": _precision(train.precision, device)})
                key = _key(inner, train, device)
                places = found[key].places if key in found else ()
                found[key] = Trial(key, train, (*places, (axis, value)), device)
    return sorted(found.values(), key=lambda trial: -len(trial.places))


def _precision(asked: str, device: str) -> str:
    if asked != "auto":
        return asked
    return "bf16" if device == "cuda" or resolve_precision(asked, torch.device("cpu")) == torch.bfloat16 else "float32"


def _key(images: LabelledImages, train: TrainSpec, device: str) -> str:
    decides = {
        "images": images.image_ids,
        "labels": images.labels,
        "splits": images.splits,
        # How it is computed, and not how often somebody looks.
        "train": deciding(train, "checkpoint_every", "evaluate_every", "workers"),
        "device": device,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]


def measure_trial(run: Run, trial: Trial) -> Row:
    """Train and score, unless another has; the row is in the store afterwards.

    A training that diverged has a row with the message, ``refused``. ``images_per_s`` is of training alone.

    Args:
        run: whose catalog has the images.

    Raises:
        ContractError: the trial wants a GPU, and this process has none.
        InputError: an image can no longer be read.
    """
    if (known := read_row(run.store, trial)) is not None:
        return known
    if trial.device == "cuda" and not torch.cuda.is_available():
        raise ContractError("the trial was planned for a GPU, and this process has none.", retryable=True)
    inner = with_validation(labelled_images(run), run.spec.settings.train.seed).in_a_split()
    row: Row = {"key": trial.key}
    with Pixels(inner, run.spec.images, trial.train.input_size, Limits.of(run.spec.settings.catalog)) as pixels:
        pixels.decode(np.arange(len(inner)))
        try:
            state = train_network(inner, pixels, trial.train, trial.device)
        except TrainingDivergedError as error:
            row["refused"] = error.message
        else:
            vectors = embed_rows(state.network, pixels, np.arange(len(inner)), trial.train)
            rate = state.history[-1]["images_seen"] / max(state.seconds, 1e-9)
            row |= {**held_out_scores(inner, vectors), "seconds": state.seconds, "images_per_s": rate}
    with suppress(ObjectExistsError):  # another worker was as fast
        run.store.create(_place(trial), json.dumps(row).encode())
    return row


def read_row(store: Store, trial: Trial) -> Row | None:
    """The trial's row; None while nobody has measured it."""
    if not store.exists(_place(trial)):
        return None
    row: Row = json.loads(store.read(_place(trial)))
    return row


def _place(trial: Trial) -> str:
    return f"experiments/sweep/{trial.key}.json"


def sweep(
    run: Run, trials: Sequence[Trial], measure_all: Callable[[Sequence[Trial]], Iterable[Row]] | None = None
) -> Iterator[Row]:
    """Rows of all trials as they come, those that are there first; each with ``places`` and ``seed``.

    Args:
        measure_all: measures trials that nobody has measured; by default here, one after the other.
    """
    of_key = {trial.key: trial for trial in trials}
    rows = {trial.key: read_row(run.store, trial) for trial in trials}
    open_trials = [trial for trial in trials if rows[trial.key] is None]
    measured = measure_all(open_trials) if measure_all else (measure_trial(run, trial) for trial in open_trials)
    for row in chain((row for row in rows.values() if row is not None), measured):
        yield _named(row, of_key[row["key"]])


def _named(row: Row, trial: Trial) -> Row:
    return {**row, "places": [list(place) for place in trial.places], "seed": trial.train.seed}


def tabulate(rows: Sequence[Row], axes: Mapping[str, Sequence[str]]) -> list[Row]:
    """A row for each value of each axis: mean over seeds and half the 95% interval of each of ``SCORES``.

    A value of which a seed was refused has no scores.
    """
    table = []
    for axis, values in axes.items():
        for value in values:
            mine = [row for row in rows if [axis, value] in row["places"]]
            scores = {
                score: interval([row[score] for row in mine])
                for score in SCORES
                if mine and all(score in r for r in mine)
            }
            table.append({"axis": axis, "value": value, "runs": len(mine), **scores})
    return table


def in_words(row: Row) -> str:
    """A row in one line."""
    places = ", ".join(f"{axis} {value}" for axis, value in row["places"])
    if "refused" in row:
        return f"{places}, seed {row['seed']}: {row['refused']}"
    return f"{places}, seed {row['seed']}: kNN {row['knn_accuracy']:.3f}, {row['images_per_s']:.0f} images/s"


def as_text(row: Row) -> dict[str, str]:
    """A row of the table: means, with half their interval where there is one."""
    told = {"axis": row["axis"], "value": row["value"], "runs": str(row["runs"])}
    for score in SCORES:
        if score in row:
            mean, half = row[score]
            digits = 0 if score == "images_per_s" else 3
            told[score] = f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")
    return told

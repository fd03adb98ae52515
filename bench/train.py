"""A training step, input included, against the same step written plainly, and against the paper's explicit tuples.

    python -m bench train
    python -m bench.train --images $DAMAGE_ATLAS_DATA/steel-neu
    python -m bench.train --convergence --images $DAMAGE_ATLAS_DATA/steel-neu --work var/bench/train

The first two print images and anchors a second, each in turn on the same images; the last one the steps and images that
four losses take to 95% of their final kNN accuracy, and goes on with the trainings that WORK/convergence.jsonl lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from damage_atlas.demo import make_demo
from damage_atlas.experiments.log import MeasurementLog
from damage_atlas.images import Limits, preprocess
from damage_atlas.network import CHANNELS, REDUCTION_UNITS, resolve_precision
from damage_atlas.pipeline import run_stage
from damage_atlas.spec import Settings, TrainSpec, with_overrides
from damage_atlas.store import Run, Store, start_run
from damage_atlas.train import labelled_images
from damage_atlas.train.augment import augment
from damage_atlas.train.data import LabelledImages, Pixels
from damage_atlas.train.evaluate import quick_knn_accuracy
from damage_atlas.train.loop import Alone, Trainer, TrainingState, make_optimizer, resolve_counts
from damage_atlas.train.losses import MNPairLoss
from damage_atlas.train.sampling import BalancedBatches
from damage_atlas.train.start import new_network

_ROUNDS, _STEPS = 5, 5  # a round is so many steps of each recipe, after one that is not counted
_DEMO_IMAGES = 1500

# At equal images a step. In tuples of N-pair M is 2, so that a batch holds more of them.
FORMS: dict[str, dict[str, Any]] = {
    "MN-pair, tuples": {"sampler": "tuples", "loss": "mn_pair"},
    "N-pair, tuples": {"sampler": "tuples", "loss": "n_pair"},
    "SupCon, all pairs": {"sampler": "balanced", "loss": "supcon"},
    "MN-pair, all pairs (ours)": {"sampler": "balanced", "loss": "mn_pair"},
}
_SHARE = 0.95


def main(images: Path | None = None, rounds: int = _ROUNDS) -> None:
    """Print the rates of all recipes and their ratios."""
    with tempfile.TemporaryDirectory(prefix="damage-atlas-bench-") as folder:
        if images is None:
            make_demo(Path(folder) / "demo", size=_DEMO_IMAGES, deliveries=1, photo_px=(512, 512))
            images = Path(folder) / "demo" / "images" / "labelled"
        with _training(Path(folder), images, TrainSpec()) as (run, found, pixels):
            _compare(run, found, pixels, rounds)


@contextmanager
def _training(folder: Path, images: Path, spec: TrainSpec) -> Iterator[tuple[Run, LabelledImages, Pixels]]:
    """A run whose catalog is sealed, what it learns from, and the pixels."""
    settings = Settings(train=spec)
    run = start_run(Store(folder), kind="train", archive="bench", images=str(images), model="net", settings=settings)
    run_stage(run, "catalog")
    found = labelled_images(run)
    with Pixels(found, run.spec.images, spec.input_size, Limits.of(run.spec.settings.catalog)) as pixels:
        yield run, found, pixels


def _trainer(found: LabelledImages, pixels: Pixels, spec: TrainSpec) -> Trainer:
    network = new_network(spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = TrainingState(network, make_optimizer(network, spec))
    return Trainer(state, pixels, found.training_rows, found.training_codes, spec, Alone(), found.label_sets)


def _compare(run: Run, found: LabelledImages, pixels: Pixels, rounds: int) -> None:
    spec, cores = run.spec.settings.train, os.cpu_count() or 1
    started = time.perf_counter()
    pixels[found.training_rows]
    decoded_per_s = len(found.training_rows) / (time.perf_counter() - started)

    ours, tuples = (_trainer(found, pixels, spec.model_copy(update={"sampler": s})) for s in ("balanced", "tuples"))
    alone = _trainer(found, pixels, spec)
    inputs = alone._load(0)
    alone._load = lambda iteration: inputs  # type: ignore[method-assign]
    recipes: dict[str, Callable[[], float]] = {
        "ours": lambda: _seconds_a_step(ours),
        "step alone, its input made beforehand": lambda: _seconds_a_step(alone),
        "tuples": lambda: _seconds_a_step(tuples),
        "plain": _Plain(run, found, spec, cores).seconds_a_step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    busy: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(rounds):
        for name, recipe in recipes.items():
            before = _cpu_seconds()
            seconds[name].append(recipe())
            busy[name].append((_cpu_seconds() - before) / (_STEPS + 1))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    cpu = {name: statistics.median(values) for name, values in busy.items()}
    print(
        f"{len(found.training_rows)} images, batches of {spec.batch_size} at {spec.input_size} pixels, "
        f"{resolve_precision(spec.precision, torch.device('cpu'))}, {cores} cores, medians of {rounds} rounds:"
    )
    for name, value in median.items():
        spread = (max(seconds[name]) - min(seconds[name])) / value
        count = tuples.batches.batch_size if name == "tuples" else spec.batch_size
        print(f"  {name}: {count / value:,.0f} images/s (spread {spread:.0%}), {cpu[name] / count:.2g} CPU-s an image")
    anchors = tuples.batches.tuples  # type: ignore[union-attr]
    print(f"decoding, once for each image: {decoded_per_s:,.0f} images/s")
    print(f"input: the step runs at {median['step alone, its input made beforehand'] / median['ours']:.2f} of its pace")
    wall, of_cpu = (times["plain"] / times["ours"] for times in (median, cpu))
    print(f"images/s against the plain recipe: ratio {wall:.2f} (wanted: 3), by CPU time {of_cpu:.2f}")
    wall, of_cpu = (spec.batch_size / anchors * times["tuples"] / times["ours"] for times in (median, cpu))
    print(
        f"anchors/s against explicit tuples ({anchors} a batch): ratio {wall:.2f} (wanted: 5), by CPU time {of_cpu:.2f}"
    )


def _cpu_seconds() -> float:
    """Of this process and its children that have ended: what a machine that does other work as well does not change."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _seconds_a_step(trainer: Trainer) -> float:
    ends: list[float] = []
    trainer.run(trainer.state.iteration + _STEPS + 1, lambda _: ends.append(time.perf_counter()))
    return (ends[-1] - ends[0]) / _STEPS


class _Augmented(Dataset[torch.Tensor]):
    """What a training script's dataset does: open, shrink, change, make a float tensor of it."""

    def __init__(self, files: list[Path], spec: TrainSpec) -> None:
        self.files, self.spec = files, spec

    def __getitem__(self, place: tuple[int, int, int]) -> torch.Tensor:
        row, iteration, position = place
        with Image.open(self.files[row]) as image:
            pixels = preprocess(image.convert("RGB"), self.spec.input_size)
        (changed,) = augment(self.spec, pixels[None], iteration=iteration, first_position=position)
        return torch.from_numpy(changed).permute(2, 0, 1).float().sub(127.5).div(63.75)


class _UnitLength(nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return functional.normalize(vectors, dim=1)


def _plain_network(spec: TrainSpec) -> nn.Module:
    """Table 3 as one would write it; ours pools first and takes a few images at once."""
    layers: list[nn.Module] = []
    for before, channels in zip((3, *CHANNELS), CHANNELS, strict=False):
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    side = spec.input_size // 8
    head = (nn.Flatten(), nn.Linear(CHANNELS[-1] * side * side, REDUCTION_UNITS), nn.ReLU())
    return nn.Sequential(*layers[:-1], *head, nn.Linear(REDUCTION_UNITS, spec.embedding_size), _UnitLength())


class _Plain:
    """The same step as one would write it: a DataLoader, the default layout, float32, the batch in one piece."""

    def __init__(self, run: Run, found: LabelledImages, spec: TrainSpec, cores: int) -> None:
        files = [Path(run.spec.images) / found.sources[row].file for row in found.training_rows]
        self.dataset, self.spec, self.cores, self.iteration = _Augmented(files, spec), spec, cores, 0
        self.batches = BalancedBatches(found.training_codes, spec.batch_size, spec.seed)
        self.codes = torch.as_tensor(found.training_codes)
        self.network = _plain_network(spec)
        m, n = resolve_counts(found.training_codes, found.label_sets, spec)
        self.criterion = MNPairLoss(spec.temperature, spec.positive_weight, spec.loss, m, n)
        betas = (spec.gradient_decay, spec.squared_gradient_decay)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=spec.learning_rate, betas=betas)

    def seconds_a_step(self) -> float:
        torch.set_num_threads(self.cores)
        iterations = range(self.iteration, self.iteration + _STEPS + 1)
        self.iteration = iterations.stop
        places = [[(int(r), i, p) for p, r in enumerate(self.batches[i])] for i in iterations]
        loader = DataLoader(self.dataset, batch_sampler=places, num_workers=self.cores)
        ends = []
        for images, rows in zip(loader, places, strict=True):
            labels = self.codes[[row for row, _, _ in rows]]
            self.optimizer.zero_grad()
            self.criterion(self.network(images), labels).backward()
            self.optimizer.step()
            ends.append(time.perf_counter())
        return (ends[-1] - ends[0]) / _STEPS


def convergence(images: Path, work: Path, seeds: int, iterations: int, every: int, spec: TrainSpec) -> None:
    """Print what each form takes to 95% of its final kNN accuracy; trainings that are in the file are not repeated."""
    log, rows = MeasurementLog(work / "convergence.jsonl"), []
    for seed in range(seeds):
        for form, changes in FORMS.items():
            asked = TrainSpec(**(spec.model_dump() | changes | {"seed": seed, "iterations": iterations}))

            def measure(asked: TrainSpec = asked) -> dict[str, Any]:
                with tempfile.TemporaryDirectory(prefix="damage-atlas-bench-") as folder:
                    with _training(Path(folder), images, asked) as (_, found, pixels):
                        return _curve(found, pixels, asked, every)

            decides = {"images": str(images.resolve()), "train": asked.model_dump(mode="json"), "every": every}
            rows.append(log.measured(decides, {"form": form, "seed": seed}, measure))
            print(json.dumps(rows[-1]), flush=True)
    print(f"{'form':<28} {'final kNN':<20} {'steps to 95%':<22} {'images to 95%':<28} steps to 95% of ours")
    finals = {row["seed"]: row["final"] for row in rows if row["form"] == "MN-pair, all pairs (ours)"}
    for form in FORMS:
        mine = [row for row in rows if row["form"] == form]
        if not mine:
            continue
        steps = [_steps_to(row, _SHARE * row["final"]) for row in mine]
        common = [_steps_to(row, _SHARE * finals[row["seed"]]) for row in mine if row["seed"] in finals]
        seen = [s * row["images_a_step"] for s, row in zip(steps, mine, strict=True)]
        final = _interval([row["final"] for row in mine], 3)
        print(f"{form:<28} {final:<20} {_interval(steps):<22} {_interval(seen):<28} {_interval(common)}")


def _curve(found: LabelledImages, pixels: Pixels, spec: TrainSpec, every: int) -> dict[str, Any]:
    trainer = _trainer(found, pixels, spec)
    curve: list[tuple[int, float]] = []

    def look(state: TrainingState) -> None:
        if state.iteration % every == 0:
            curve.append((state.iteration, round(quick_knn_accuracy(state.network, pixels, found, spec), 4)))

    trainer.run(spec.iterations, look)
    # The mean of the last fifth: one look is noisy.
    final = statistics.mean(accuracy for _, accuracy in curve[-max(len(curve) // 5, 1) :])
    return {"images_a_step": trainer.batches.batch_size, "final": round(final, 4), "curve": curve}


def _steps_to(row: dict[str, Any], accuracy: float) -> float:
    """The first look at or above ``accuracy``; infinite where it was never reached."""
    return next((float(step) for step, found in row["curve"] if found >= accuracy), float("inf"))


def _interval(values: list[float], digits: int = 0) -> str:
    """Mean and 95% interval of Student's t over seeds."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2 or not np.isfinite(values).all():
        return f"{mean:,.{digits}f} (n = {len(values)})"
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return f"{mean:,.{digits}f} ± {half:,.{digits}f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder with a sub-folder for each class; by default the demo's")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--convergence", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("var/bench/train"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--every", type=int, default=10, help="steps between two looks at the accuracy")
    parser.add_argument("--set", nargs="*", default=[], help="settings, as train.input_size=64, of --convergence")
    given = parser.parse_args()
    if given.convergence:
        if given.images is None:
            parser.error("--convergence needs --images")
        spec = with_overrides(Settings(), given.set).train
        convergence(given.images, given.work, given.seeds, given.iterations, given.every, spec)
    else:
        main(given.images, given.rounds)

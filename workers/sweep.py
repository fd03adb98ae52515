"""Sweep by Ray Tune: each trial is a training in one process, as many at once as the cluster has room for.

Rows lie in the library's store, so that a sweep which was stopped, or lost its driver, goes on where it was; what Ray
Tune keeps for itself is thrown away.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray import tune

from damage_atlas.errors import ContractError, ObjectExistsError
from damage_atlas.experiments.log import Row
from damage_atlas.experiments.plots import draw_axes
from damage_atlas.experiments.sweep import (
    GRIDS,
    SCORES,
    Trial,
    in_words,
    measure_trial,
    parse_axes,
    plan_sweep,
    read_row,
    sweep,
    tabulate,
)
from damage_atlas.progress import Progress
from damage_atlas.spec import TrainSpec
from damage_atlas.store import Run
from damage_atlas.train import labelled_images
from workers.job import about, say_result, told_to_caller
from workers.logs import log_to_stdout
from workers.on_ray import connect, largest_node_cpus
from workers.progress import export_progress

logger = logging.getLogger("workers.sweep")

_RESTARTS = 2  # of a trial whose process or node was lost
# Tune's own files of every trial: nobody reads them, and they are pickled in part.
_QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}


class _Told(tune.Callback):  # type: ignore[misc]
    """Counts trials that have ended."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy of itself, which nobody asks for; a progress cannot be copied

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """One more."""
        self.progress.add(1, note=str((trial.last_result or {}).get("told", "")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """One more, and bad."""
        self.progress.add(1, bad=1)


def run_trial(config: dict[str, Any]) -> None:
    """What a trial's process does."""
    config = config["trial"]
    run = Run.load(config["run_uri"], config["attempt"])
    log_to_stdout(about(run, "sweep"))
    places = tuple(map(tuple, config["places"]))
    trial = Trial(config["key"], TrainSpec.model_validate(config["train"]), places, config["device"])
    row = measure_trial(run, trial)
    tune.report({"told": in_words({**row, "places": config["places"], "seed": trial.train.seed})})


def measure(run: Run, trials: Sequence[Trial], of: int, progress: Progress) -> list[Row]:
    """Rows of those that nobody has measured.

    Args:
        of: how many the sweep has in all.

    Raises:
        ContractError: some were lost more often than they are tried.
    """
    progress.add(of - len(trials), note="known already")
    if not trials:
        return []
    threads = max(trial.train.threads_per_shard * trial.train.shards for trial in trials)
    gpus = {"GPU": 1} if trials[0].device == "cuda" else {}
    configs = [
        {
            "run_uri": run.uri,
            "attempt": run.attempt,
            "key": trial.key,
            "train": trial.train.model_dump(mode="json"),
            "places": [list(place) for place in trial.places],
            "device": trial.device,
        }
        for trial in trials
    ]
    os.environ.update(_QUIET)
    with tempfile.TemporaryDirectory(prefix="damage-atlas-sweep-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(run_trial, {"CPU": min(threads, largest_node_cpus()), **gpus}),
            param_space={"trial": tune.grid_search(configs)},
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[_Told(progress)],
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            ),
        )
        errors = tuner.fit().errors
    if errors:
        last = " ".join(str(errors[0]).split())[-300:]
        raise ContractError(f"{len(errors)} of {len(trials)} trainings were lost: {last}", retryable=True)
    return [row for trial in trials if (row := read_row(run.store, trial)) is not None]


def main() -> None:
    """Sweep over the axes named on the command line, with the images and settings of a run."""
    parser = argparse.ArgumentParser(prog="workers.sweep")
    parser.add_argument("run_uri")
    parser.add_argument("--axis", action="append", help="by default the paper's grids, loss and sampler")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--attempt", type=int, default=1)
    arguments = parser.parse_args()
    log_to_stdout()
    with told_to_caller():
        run = Run.load(arguments.run_uri, arguments.attempt)
        log_to_stdout(about(run, "sweep"))
        export_progress(run.spec.archive)
        axes = parse_axes(arguments.axis or list(GRIDS))
        connect()
        device = "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
        trials = plan_sweep(labelled_images(run), run.spec.settings, axes, range(arguments.seeds), device)
        with Progress("sweep", "trainings", len(trials)) as progress:
            rows = list(sweep(run, trials, lambda missing: measure(run, missing, len(trials), progress)))
        table = tabulate(rows, axes)
        asked = hashlib.sha256(json.dumps([axes, arguments.seeds, device]).encode()).hexdigest()[:8]
        folder = f"experiments/sweep/{run.spec.run_id}-{asked}"
        for name, data in (
            ("sweep.json", json.dumps(table, indent=1).encode()),
            ("sweep.png", draw_axes(rows, axes, SCORES)),
        ):
            with suppress(ObjectExistsError):  # an earlier attempt has written the same
                run.store.create(f"{folder}/{name}", data)
    for row in rows:
        logger.info("sweep: %s", in_words(row))
    say_result({"run_uri": run.uri, "trainings": len(trials), "table": run.store.uri(f"{folder}/sweep.json")})


if __name__ == "__main__":
    main()

"""Which settings of training pay: one after another is varied around those of an archive's file.

By default the paper's grids (input size, embedding size, temperature, nu), the forms of the loss and of the sampler.
Each training is a trial of Ray Tune, and one that has been made is never made again. Scores are of a validation part of
the training split. The table and a picture lie in the store, below `experiments/sweep`. Nothing is promoted.
"""

from __future__ import annotations

import shlex
from datetime import timedelta

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_ray_jobs import RayJobOperator
from atlas_flow import DEFAULTS, GPU_POOL, ITERATIONS, open_run, stage_task, trainable_archive
from notify import alerts

_TIMEOUT = timedelta(hours=12)  # a try beyond it is stopped; the next one goes on where it was

with DAG(
    dag_id="sweep_training",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["damage-atlas", "training"],
    doc_md=__doc__,
    params={
        "archive": trainable_archive("Whose labelled images and settings."),
        "axes": Param(
            ["input_size", "embedding_size", "temperature", "positive_weight", "loss", "sampler"],
            type="array",
            items={"type": "string", "pattern": "^[a-z_]+(=[A-Za-z0-9.,_+-]+)?$"},
            minItems=1,
            title="Axes",
            description="Names of grids, or a setting with its values: learning_rate=1e-4,1e-3",
        ),
        "seeds": Param(1, type="integer", minimum=1, maximum=20, title="Seeds", description="Trainings of each value."),
        "iterations": ITERATIONS,
    },
    **alerts(36),
) as dag:

    @task(execution_timeout=timedelta(minutes=5), doc_md="Makes the command of the sweep from the form.")
    def command(run_uri: str) -> str:
        """The job's command; its attempt is filled in when it is submitted."""
        params = get_current_context()["params"]
        axes = [word for axis in params["axes"] for word in ("--axis", axis)]
        words = ["python", "-m", "workers.sweep", run_uri, *axes, "--seeds", str(params["seeds"])]
        return f"{shlex.join(words)} --attempt {{attempt}}"

    run = open_run("train")
    sweep = RayJobOperator(
        task_id="sweep",
        entrypoint=command(run),
        same_versions=["damage-atlas"],
        execution_timeout=_TIMEOUT,
        job_timeout=_TIMEOUT,
        pool=GPU_POOL,
        doc_md="Trains once for each value of each axis and seed, as trials of Ray Tune.",
    )
    run >> stage_task("catalog", run) >> sweep

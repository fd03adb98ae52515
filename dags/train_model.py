"""Labelled images become a model version.

Trains the model of an archive on its labelled images and promotes the new version, unless it scores worse than the one
that is current; the archives that use the model are re-clustered with it, if their DAGs are switched on.
Give the archive. The number of iterations may be changed for one run; everything else stands in the archive's file.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from atlas_flow import DEFAULTS, PROMOTED, announce_model, archives, open_run, stage_task
from notify import alerts

trainable = [archive.archive for archive in archives() if archive.training_images]

with DAG(
    dag_id="train_model",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["damage-atlas", "training"],
    doc_md=__doc__,
    params={
        "archive": Param(
            trainable[0] if trainable else "",
            type="string",
            enum=trainable or [""],
            title="Archive",
            description="Whose model to train.",
        ),
        "iterations": Param(
            None,
            type=["integer", "null"],
            minimum=1,
            title="Iterations",
            description="Empty: as the archive's file says.",
        ),
    },
    **alerts(24),
) as dag:
    run = open_run("train")
    train = stage_task("train", run, outlets=[PROMOTED], post_execute=announce_model)
    run >> stage_task("catalog", run) >> train

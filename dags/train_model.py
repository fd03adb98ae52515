"""Labelled images become a model version.

Trains the model of an archive on its labelled images and promotes the new version, unless it scores worse than the one
that is current; the archives that use the model are re-clustered with it, if their DAGs are switched on.
Give the archive. The number of iterations may be changed for one run; everything else stands in the archive's file.
"""

from __future__ import annotations

from airflow.sdk import DAG

from atlas_flow import DEFAULTS, ITERATIONS, PROMOTED, announce_model, open_run, stage_task, trainable_archive
from notify import alerts

with DAG(
    dag_id="train_model",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["damage-atlas", "training"],
    doc_md=__doc__,
    params={
        "archive": trainable_archive("Whose model to train."),
        "iterations": ITERATIONS,
    },
    **alerts(24),
) as dag:
    run = open_run("train")
    train = stage_task("train", run, outlets=[PROMOTED], post_execute=announce_model)
    run >> stage_task("catalog", run) >> train

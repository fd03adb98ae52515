"""All stages in one process: the file to read first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from damage_atlas.catalog import build_catalog
from damage_atlas.cluster import cluster_map
from damage_atlas.contracts import Alerts, Artifact
from damage_atlas.embed import embed_archive
from damage_atlas.errors import InputError
from damage_atlas.explain import explain_clusters
from damage_atlas.index import build_index
from damage_atlas.publish import publish_run
from damage_atlas.report import write_report
from damage_atlas.store import Run, read_version
from damage_atlas.store.versions import run_ledger
from damage_atlas.train import train_model

logger = logging.getLogger(__name__)

STAGE_FUNCTIONS: dict[str, Callable[[Run], Artifact]] = {
    "catalog": build_catalog,
    "train": train_model,
    "embed": embed_archive,
    "index": build_index,
    "cluster": cluster_map,
    "explain": explain_clusters,
    "report": write_report,
    "publish": publish_run,
}


def run_pipeline(run: Run) -> Iterator[Artifact]:
    """Run the stages of the run's kind, one after the other; sealed stages are taken as they are."""
    for name in run.spec.stages:
        yield run_stage(run, name)


def run_stage(run: Run, name: str) -> Artifact:
    """Run one stage in this process, as the next attempt if an earlier one was left unfinished.

    Raises:
        InputError: the run has no such stage.
    """
    if name not in run.spec.stages:
        raise InputError(f"{run.uri}: a run of kind {run.spec.kind} has no stage {name}.")
    stage = run.stage(name)
    was_sealed = stage.sealed is not None
    if not was_sealed:
        run = Run(run.store, run.key, run.spec, stage.next_attempt())
        if run.attempt > 1:
            logger.info("%s: going on after an unfinished attempt", name)
    try:
        artifact = STAGE_FUNCTIONS[name](run)
    except InputError as error:
        run.refuse(error.message)
        raise
    if was_sealed:
        logger.info("%s: complete already, nothing to do", name)
    return artifact


def summarize(run: Run) -> dict[str, Any]:
    """What `run --json` and `recluster --json` print: one object, facts only."""
    ledger = run_ledger(run)
    cluster = run.artifact("cluster").facts
    published = run.artifact("publish").facts
    record = read_version(run.store, run.spec.archive, published["version"])
    scores = run.artifact("train").facts["scores"] if run.spec.kind == "run" else {}
    return {
        "run_uri": run.uri,
        "version": record.version,
        "report_uri": published["report"],
        "counts": {
            name: getattr(ledger, name)
            for name in ("listed", "embedded", "reused", "duplicate", "quarantined", "pending")
        },
        "quarantine": ledger.reasons,
        "clusters": cluster["clusters"],
        "noise_share": cluster["noise_share"],
        "new_clusters": cluster["new_clusters"],
        "alerts": [alert.text for alert in Alerts.model_validate_json(run.read("cluster", "alerts.json")).alerts],
        "scores": {**scores, **cluster["agreement_with_labels"]},
        "seconds": {stage: run.artifact(stage).seconds for stage in run.spec.stages},
    }

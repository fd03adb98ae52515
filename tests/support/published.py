"""A small archive that a library run has published twice: what there is to watch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from damage_atlas.contracts import Alert, Sighting
from damage_atlas.pipeline import run_pipeline
from damage_atlas.spec import CatalogSpec, Settings, with_overrides
from damage_atlas.store import Run, Store, start_run
from damage_atlas.store.runs import write_output
from tests.support.small_archive import make_delivery, make_labelled

FAST = [
    "train.input_size=32",
    "train.iterations=40",
    "train.batch_size=24",
    "train.learning_rate=0.002",
    "train.checkpoint_every=10",  # so that old ones are deleted
]


def steps(folder: Path) -> list[dict[str, Any]]:
    """What to start, one after the other: a model, and two versions of ``small``; one file of the second is broken."""
    make_labelled(folder / "labelled")
    make_delivery(folder / "archive", "d1", 0, each=12)
    make_delivery(folder / "archive", "d2", 50, each=5)
    broken = folder / "archive" / "d2" / "asset-0" / "broken.png"
    broken.write_bytes(next(broken.parent.glob("*.png")).read_bytes()[:300])
    common = {"archive": "small", "model": "small"}
    unlabelled = Settings(catalog=CatalogSpec(labels="none", deliveries="folder"))
    train = {"kind": "train", "images": str(folder / "labelled"), "settings": with_overrides(Settings(), FAST)}
    again = {"kind": "recluster", "images": str(folder / "archive"), "settings": unlabelled}
    return [
        common | train | {"run_id": "0-train"},
        common | again | {"run_id": "1-recluster", "delivery": "d1"},
        common | again | {"run_id": "2-recluster", "delivery": "d2"},
    ]


def publish_small(folder: Path) -> list[Run]:
    """Do these steps in ``folder/store``; the runs of both versions."""
    runs = []
    for step in steps(folder):
        run = start_run(Store(folder / "store"), **step)
        list(run_pipeline(run))
        runs.append(run)
    raise_alerts(runs[-1], "born", "drift", "born")
    return runs[1:]


def raise_alerts(run: Run, *kinds: str) -> None:
    """Make the run's cluster stage say these alerts, whatever it said. `verify` will complain."""
    assert run.store.folder is not None
    artifact = run.store.folder / run.key / "cluster" / "artifact.json"
    said = json.loads(run.read("cluster", "alerts.json"))
    said["alerts"] = [_alert(kind) for kind in kinds]
    data = json.dumps(said).encode()
    output = write_output(run.store, f"{run.key}/cluster/alerts-{len(kinds)}.json", data)
    document = json.loads(artifact.read_text())
    document["outputs"]["alerts.json"] = output.model_dump()
    artifact.write_text(json.dumps(document))


def _alert(kind: str) -> dict[str, Any]:
    sighting = Sighting(
        observation_id="o", image_id="i", uri="file:///a.jpg", similarity=1.0, asset_id=None, delivery=None,
        element=None, position_m=None, captured_at=None, latitude=None, longitude=None,
    )  # fmt: skip
    alert = Alert(
        kind="born", cluster_id=1, text="look", score=9.0, images=3, moments=3, expected=0.1, growth=None, size=3,
        size_before=None, clusters={"1": 3}, nearest_label=None, medoid=sighting, nearest=[sighting], image_ids=[],
        assets={}, places=[], captured_from=None, captured_to=None,
    )  # fmt: skip
    return alert.model_dump(mode="json") | {"kind": kind}

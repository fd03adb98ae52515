"""Everything that is stored: objects behind one door, run folders, version records.

objects.py    Store: file:// and s3://, put-if-absent only
remarks.py    what people say of clusters: numbered, created once
runs.py       Run and Stage: a frozen run.yaml, one folder per stage, artifact.json written last
starting.py   what was asked for becomes a complete run.yaml
retention.py  unpublished runs are taken away after a while
versions.py   version records and model promotions: numbered, created once
"""

from damage_atlas.store.objects import ObjectInfo, Store, absolute
from damage_atlas.store.runs import Run, Stage, open_run
from damage_atlas.store.starting import start_run
from damage_atlas.store.versions import (
    current_version,
    list_versions,
    load_model_card,
    promote_model,
    publish_version,
    read_version,
    resolve_model,
)

__all__ = [
    "ObjectInfo",
    "Run",
    "Stage",
    "Store",
    "absolute",
    "current_version",
    "list_versions",
    "load_model_card",
    "open_run",
    "promote_model",
    "publish_version",
    "read_version",
    "resolve_model",
    "start_run",
]

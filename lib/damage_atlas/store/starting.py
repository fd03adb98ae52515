"""Starting a run: what a person or a DAG asks for becomes a complete, frozen ``run.yaml``."""

from __future__ import annotations

from damage_atlas.contracts import RunKind
from damage_atlas.errors import ObjectNotFoundError
from damage_atlas.spec import RunSpec, Settings, build_document, changed_keys
from damage_atlas.store.objects import Store, absolute
from damage_atlas.store.runs import Run, new_run_id, open_run, read_run_spec, run_key
from damage_atlas.store.versions import current_version, resolve_model

_FREE = ("run_id", "model_version", "previous_version")


def start_run(
    store: Store,
    *,
    kind: RunKind,
    archive: str,
    images: str,
    model: str,
    settings: Settings,
    delivery: str | None = None,
    run_id: str | None = None,
) -> Run:
    """Open a run: the one named ``run_id``; else the newest unfinished one that was asked for alike; else a new one.

    The model version and the version that the run builds on are settled here and frozen.

    Args:
        model: ``NAME`` or ``NAME@VERSION``; for training, the name to give.

    Raises:
        InputError: the model is not there.
        SpecError: a name that is none, or a run of that id with other settings.
    """
    name, _, _ = model.partition("@")
    card = resolve_model(store, model) if kind == "recluster" else None
    spec = build_document(
        RunSpec,
        {
            "run_id": run_id or new_run_id(),
            "kind": kind,
            "archive": archive,
            "images": absolute(images),
            "delivery": delivery,
            "model": name,
            "model_version": card.version if card else None,
            "previous_version": None if kind == "train" else current_version(store, archive),
            "settings": settings.model_dump(),
        },
        "run",
    )
    if run_id is not None:
        return open_run(store, spec)
    unfinished = _unfinished_like(store, spec)
    return unfinished if unfinished is not None else _open_new(store, spec)


def _open_new(store: Store, spec: RunSpec) -> Run:
    # Two runs started within one second: the later one takes the next free name.
    base, number = spec.run_id, 1
    while store.exists(f"{run_key(spec)}/run.yaml"):
        number += 1
        spec = spec.model_copy(update={"run_id": f"{base}-{number}"})
    return open_run(store, spec)


def _unfinished_like(store: Store, wanted: RunSpec) -> Run | None:
    folder = run_key(wanted).rpartition("/")[0]
    last = wanted.stages[-1]
    run_ids: list[str] = store.list_folders(folder)
    for run_id in reversed(run_ids):
        key = f"{folder}/{run_id}"
        try:
            found = read_run_spec(store, key)
        except ObjectNotFoundError:
            continue
        run = Run(store, key, found)
        if run.refused:
            continue
        if run.stage(last).sealed is not None:
            return None  # finished: what is older is history
        same_base = found.previous_version == wanted.previous_version
        free = {name: getattr(found, name) for name in _FREE}
        if same_base and not changed_keys(found, wanted.model_copy(update=free)):
            return run
    return None

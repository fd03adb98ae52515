"""The catalog stage: list, check, place, split, seal."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa

from damage_atlas.catalog.check import CheckedFile, CheckFiles
from damage_atlas.catalog.groups import join_groups, parse_side_car
from damage_atlas.catalog.listing import Listing, list_images
from damage_atlas.catalog.rows import Row, contradictions, make_rows, mark_duplicates, place_of
from damage_atlas.catalog.splits import assign_splits
from damage_atlas.contracts import OBSERVATIONS, Artifact
from damage_atlas.errors import InputError, ObjectNotFoundError
from damage_atlas.images import Limits, file_uri
from damage_atlas.parts import MapParts, map_in_threads, plan_parts
from damage_atlas.progress import Progress
from damage_atlas.spec import CatalogSpec
from damage_atlas.store import Run, Store

_FILES_PER_PART: Final = 64
_NAMES_IN_FACTS: Final = 100


def build_catalog(run: Run, map_parts: MapParts = map_in_threads) -> Artifact:
    """Make ``observations.parquet`` of the run's image folder.

    Raises:
        InputError: no folder, no images, an unknown delivery, a malformed side-car, or too much quarantined.
        StoreError: the folder or the store did not answer.
    """
    stage = run.stage("catalog")
    if sealed := stage.sealed:
        return sealed
    settings = run.spec.settings.catalog
    images = Store(run.spec.images)

    listing = list_images(images, skip=_store_below(images, run.store))
    deliveries = _choose_deliveries(listing, settings, run.spec.delivery)
    if not listing.files:
        raise InputError(
            f"images: no pictures in {images.root} ({len(listing.ignored)} other files ignored). "
            "Give the folder that holds the images."
        )
    groups, side_car = _side_car_groups(images, settings, [listed.file for listed in listing.files])

    checked = _check(listing, CheckFiles(images.root, Limits.of(settings)), map_parts)
    _refuse_too_many_bad(checked, settings)

    rows = make_rows(checked, groups, settings, lambda file: file_uri(images, file))
    mark_duplicates(rows)
    conflicts = contradictions(rows)
    joined = _join_groups(rows)
    notes = _split(rows, conflicts, settings)

    stage.write_table("observations.parquet", pa.Table.from_pylist(rows, schema=OBSERVATIONS))
    status = Counter(row["status"] for row in rows)
    facts = {
        "ledger": {
            "listed": len(rows),
            "ok": status["ok"],
            "duplicate": status["duplicate"],
            "quarantined": status["quarantined"],
            "reasons": _counts(row["reason"] for row in rows if row["status"] == "quarantined"),
        },
        "files": len(checked),
        "photos_cut": len({row["file"] for row in rows if row.get("tile_x") is not None}),
        "tiles": sum(row.get("tile_x") is not None for row in rows),
        "ignored": _named(listing.ignored),
        "deliveries": deliveries,
        "classes": _counts(label for row in rows if row["status"] == "ok" for label in row["labels"]),
        "splits": {"train": 0, "test": 0} | _counts(row["split"] for row in rows if row.get("split")),
        "groups": len({row["group"] for row in rows}),
        "joined_groups": joined,
        "side_car": side_car,
        "label_conflicts": _named(file for files in conflicts.values() for file in files),
        "since_previous": _since_previous(run, checked),
        "notes": notes,
    }
    counts = {
        "in": len(rows),
        "out": status["ok"] + status["duplicate"],
        "failed": status["quarantined"],
    }
    return stage.seal(inputs=(), counts=counts, facts=facts)


def _store_below(images: Store, store: Store) -> str | None:
    """The run's store as a sub-folder of the image folder, where it is one: its pictures are no images."""
    if images.folder is not None and store.folder is not None:
        inner, outer = os.path.realpath(store.folder), os.path.realpath(images.folder)
    else:
        inner, outer = store.root, images.root
    if inner == outer:
        raise InputError(f"images and store are the same place, {images.root}. Give the store a folder of its own.")
    return inner.removeprefix(f"{outer}/") if inner.startswith(f"{outer}/") else None


def _choose_deliveries(listing: Listing, settings: CatalogSpec, last: str | None) -> list[str]:
    """Drop the files of deliveries after ``last``, and return the deliveries that stay, in order."""
    if settings.deliveries == "none":
        if last is not None:
            raise InputError(f"delivery {last}: catalog.deliveries is none. Set it to folder to list by delivery.")
        return []
    known = sorted({place.delivery for f in listing.files if (place := place_of(f.file, settings)).delivery})
    if last is None:
        return known
    if last not in known:
        raise InputError(f"delivery {last!r} is not there; there are: {', '.join(known) or 'none'}.")

    def arrived(file: str) -> bool:
        delivery = place_of(file, settings).delivery
        return delivery is None or delivery <= last

    listing.files = [listed for listed in listing.files if arrived(listed.file)]
    listing.ignored = [file for file in listing.ignored if arrived(file)]
    return [delivery for delivery in known if delivery <= last]


def _side_car_groups(
    images: Store, settings: CatalogSpec, files: list[str]
) -> tuple[dict[str, str] | None, dict[str, Any] | None]:
    if settings.groups is None:
        return None, None
    folder, _, name = settings.groups.rpartition("/")
    # Relative to the image folder, which means the same on every machine.
    is_relative = "://" not in settings.groups and not os.path.isabs(settings.groups)
    store, key = (images, settings.groups) if is_relative else (Store(folder or "/"), name)
    try:
        text = store.read(key).decode("utf-8")
    except ObjectNotFoundError as error:
        raise InputError(
            f"catalog.groups: {store.uri(key)} is not there. Give an address, or a path relative to images."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"catalog.groups: {store.uri(key)} is not UTF-8. Save it as CSV in UTF-8.") from error
    matched, left_over = parse_side_car(text, settings.groups).match(files)
    facts = {"named": len(matched), "not_named": len(files) - len(matched), "without_file": _named(left_over)}
    return matched, facts


def _check(listing: Listing, check: CheckFiles, map_parts: MapParts) -> list[CheckedFile]:
    parts = [listing.files[part.rows] for part in plan_parts(len(listing.files), _FILES_PER_PART)]
    checked: list[CheckedFile] = []
    with Progress("catalog", "files", len(listing.files)) as progress:
        for done in map_parts(check, parts):
            checked += done
            progress.add(len(done), bad=sum(file.reason is not None for file in done))
    return checked


def _refuse_too_many_bad(checked: list[CheckedFile], settings: CatalogSpec) -> None:
    bad = [file for file in checked if file.reason is not None]
    if len(bad) < len(checked) and len(bad) <= settings.max_quarantined_share * len(checked):
        return
    reasons = ", ".join(f"{reason} {n}" for reason, n in _counts(file.reason for file in bad).items())
    examples = "; ".join(f"{file.file!r}: {file.reason}, {file.detail}" for file in bad[:3])
    raise InputError(
        f"images: {len(bad)} of {len(checked)} files cannot be used ({reasons}); "
        f"catalog.max_quarantined_share is {settings.max_quarantined_share:g}. Look at {examples}. "
        "Mend or move them, then run again."
    )


def _join_groups(rows: list[Row]) -> int:
    # Bytes that are no picture say nothing: all empty files are equal.
    digests = [row["sha256"] if row["status"] != "quarantined" else None for row in rows]
    groups, joined = join_groups([row["group"] for row in rows], digests)
    for row, group in zip(rows, groups, strict=True):
        row["group"] = group
    return joined


def _split(rows: list[Row], conflicts: dict[str, list[str]], settings: CatalogSpec) -> list[str]:
    """Set ``split`` of the rows that can be learnt from or tested on; return what a person should know."""
    usable = [r for r in rows if r["status"] == "ok" and r["labels"] and r["sha256"] not in conflicts]
    # Also a random split keeps equal bytes together.
    groups = [row["group" if settings.split == "group" else "sha256"] for row in usable]
    classes = ["+".join(row["labels"]) for row in usable]
    splits = assign_splits(groups, classes, settings.test_share, settings.seed)
    for row, split in zip(usable, splits, strict=True):
        row["split"] = split
    if not usable or settings.test_share == 0:
        return []
    if all(row["split"] == "train" for row in usable):
        return [f"nothing is held out: {len(usable)} images in {len(set(groups))} group(s) cannot be split"]
    labels = {label for row in usable for label in row["labels"]}
    tested = {label for row in usable if row["split"] == "test" for label in row["labels"]}
    return [f"nothing is held out of {name}: too few images, or all in one group" for name in sorted(labels - tested)]


def _since_previous(run: Run, checked: list[CheckedFile]) -> dict[str, Any] | None:
    """Files of the previous version's catalog that are gone or hold other bytes now; None without one."""
    previous = run.previous()
    if previous is None:
        return None
    settings = run.spec.settings.catalog
    table = previous.read_table("catalog", "observations.parquet")
    before = table.select(["file", "sha256", "delivery"]).to_pylist()
    now = {file.file: file.sha256 for file in checked}
    last = run.spec.delivery
    # A past delivery may be run after later ones were published; their files are not missing.
    expected = {
        row["file"]: row["sha256"]
        for row in before
        if last is None or settings.deliveries == "none" or row["delivery"] is None or row["delivery"] <= last
    }
    return {
        "version": run.spec.previous_version,
        "vanished": _named(sorted(file for file in expected if file not in now)),
        "replaced": _named(sorted(f for f, digest in expected.items() if f in now and now[f] != digest)),
    }


def _named(names: Iterable[str]) -> dict[str, Any]:
    listed = list(names)
    return {"count": len(listed), "names": listed[:_NAMES_IN_FACTS]}


def _counts(names: Iterable[Any]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))

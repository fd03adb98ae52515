"""The catalog stage: list, check, place, split, seal."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.catalog.check import CheckFiles
from damage_atlas.catalog.groups import join_groups, parse_side_car
from damage_atlas.catalog.known import known_folder, read_known, read_part
from damage_atlas.catalog.listing import ListedFile, Listing, list_images
from damage_atlas.catalog.manifest import NOT_THERE, Manifest, choose_files, read_manifest
from damage_atlas.catalog.rows import contradictions, make_observations, mark_duplicates, place_of, set_columns
from damage_atlas.catalog.splits import assign_splits
from damage_atlas.contracts import CHANGES, FILES, Artifact
from damage_atlas.decoding.facts import Sampling
from damage_atlas.errors import InputError, ObjectNotFoundError
from damage_atlas.images import Limits, file_uri
from damage_atlas.parts import MapParts, map_in_threads, plan_parts
from damage_atlas.progress import Progress
from damage_atlas.spec import CatalogSpec
from damage_atlas.store import Run, Store
from damage_atlas.store.forgotten import Forgotten, read_forgotten
from damage_atlas.store.objects import beside

logger = logging.getLogger(__name__)

_NAMES_IN_FACTS: Final = 100
_NAMES_IN_LOG: Final = 5
_MANY_BAD: Final = 20  # files of one delivery; fewer are the odd broken picture, whatever their share
_ORDER: Final = [("file", "ascending"), ("frame", "ascending")]
_PARTS_WANTED: Final = 16  # of a small archive, so that all workers have something to do
_SMALLEST_PART: Final = 16  # files


def build_catalog(run: Run, map_parts: MapParts = map_in_threads) -> Artifact:
    """Make ``observations.parquet`` of the run's image folder; files that are known and unchanged are not read.

    Raises:
        InputError: no folder, no images, an unknown delivery, a malformed side-car or manifest, or too much
            quarantined.
        StoreError: the folder or the store did not answer.
    """
    stage = run.stage("catalog")
    if sealed := stage.sealed:
        return sealed
    settings = run.spec.settings.catalog
    images = Store(run.spec.images)

    manifest = _read_manifest(images, settings)
    named = manifest[0] if manifest else {}
    with Progress("listing", "names") as progress:
        listing = list_images(images, _store_below(images, run.store), lambda: progress.add(1), named)
    deliveries = _choose_deliveries(listing, settings, run.spec.delivery)
    if manifest is not None:
        listing.files = choose_files(listing.files, *manifest)
    if not listing.files:
        raise InputError(
            f"images: no pictures in {images.root} ({len(listing.ignored)} other files ignored). "
            "Give the folder that holds the images."
        )
    files, read = _facts_of_files(run, listing, map_parts)
    if manifest is not None:
        files = _named_in(manifest[0], files)
    _refuse_too_many_bad(_by_file(files), settings)

    groups, side_car = _side_car_groups(images, settings, files["file"].unique().to_pylist())
    observations = make_observations(
        files,
        groups,
        manifest[0] if manifest else None,
        settings,
        lambda file, container, time_s: file_uri(images, file, container, time_s),
    )
    if run.spec.delivery is not None:  # a tar file may hold members of several
        later = pc.greater(observations["delivery"], run.spec.delivery)
        observations = observations.filter(pc.invert(pc.fill_null(later, False)))
    forgotten = read_forgotten(run.store, run.spec.archive)
    everything = observations.num_rows
    observations = _without_forgotten(forgotten, observations)
    left_out = everything - observations.num_rows
    before = _previous_files(run)
    if before is not None:
        _refuse_a_bad_delivery(run, before, observations)
    observations = mark_duplicates(observations)
    conflicts = contradictions(observations)
    observations, joined = _join_groups(observations)
    observations, notes = _split(observations, conflicts, settings)

    stage.write_table("observations.parquet", observations)
    since = None
    if before is not None:
        changed = _since_previous(run, before, observations, forgotten.files)
        rows = [{"file": file, "change": change} for change, files_of in changed.items() for file in files_of]
        stage.write_table("changes.parquet", pa.Table.from_pylist(rows, CHANGES))
        version = run.spec.previous_version
        since = {"version": version} | {change: _named(files_of) for change, files_of in changed.items()}
        _tell_what_changed(version, changed)
    status = _counts(observations["status"])
    tiles = observations.filter(pc.is_valid(observations["tile_x"]))
    usable = observations.filter(pc.equal(observations["status"], "ok"))
    bad = observations.filter(pc.equal(observations["status"], "quarantined"))
    facts = {
        "ledger": {
            "listed": observations.num_rows,
            "ok": status.get("ok", 0),
            "duplicate": status.get("duplicate", 0),
            "quarantined": status.get("quarantined", 0),
            "reasons": _counts(bad["reason"]),
        },
        "files": len(listing.files),
        "files_read": read,
        "files_known": len(listing.files) - read,
        "photos_cut": len(tiles["file"].unique()),
        "tiles": tiles.num_rows,
        "ignored": _named(listing.ignored),
        "deliveries": deliveries,
        "classes": _counts(pc.list_flatten(usable["labels"])),
        "splits": {"train": 0, "test": 0} | _counts(observations["split"].drop_null()),
        "groups": len(observations["group"].unique()),
        "joined_groups": joined,
        "side_car": side_car,
        "forgotten": left_out,
        "label_conflicts": _named(dict.fromkeys(file for files in conflicts.values() for file in files)),
        "since_previous": since,
        "notes": notes,
    }
    counts = {
        "in": observations.num_rows,
        "out": observations.num_rows - bad.num_rows,
        "failed": bad.num_rows,
    }
    return stage.seal(inputs=(), counts=counts, facts=facts)


def _named_in(manifest: Manifest, files: pa.Table) -> pa.Table:
    """Of tar files the members that the manifest names; a row for each that it names and that is not there."""
    named = pc.is_in(files["file"], pa.array(list(manifest), pa.string()))
    files = files.filter(pc.or_(named, pc.is_null(files["container"])))
    there = set(files["file"].to_pylist())
    lost = [
        {"listed": name, "fingerprint": "", "file": name, "reason": "vanished", "detail": NOT_THERE}
        for name in manifest
        if name not in there
    ]
    return pa.concat_tables([files, pa.Table.from_pylist(lost, FILES)]).sort_by(_ORDER)


def _facts_of_files(run: Run, listing: Listing, map_parts: MapParts) -> tuple[pa.Table, int]:
    """What is known of the listed files (columns as in ``contracts.FILES``), and how many had to be read for it."""
    settings = run.spec.settings.catalog
    limits = Limits.of(settings)
    sampling = Sampling(settings.video_every_s, settings.video_scene_change)
    folder = known_folder(run.spec.archive, run.spec.images, limits, sampling)
    known = read_known(run.store, folder, listing.files, settings.retry_quarantined)
    names = set(known["listed"].to_pylist())
    missing = [file for file in listing.files if file.file not in names]
    size = max(_SMALLEST_PART, min(settings.files_per_part, -(-len(missing) // _PARTS_WANTED)))
    parts = [files for part in plan_parts(len(missing), size) for files in _one_by_one(missing[part.rows])]
    check = CheckFiles(run.spec.images, limits, sampling, run.store.root, folder)
    tables = [known]
    with Progress("catalog", "files", len(listing.files)) as progress:
        progress.add(len(listing.files) - len(missing), note="known already")
        for done in map_parts(check, parts):
            tables.append(read_part(run.store, done.key))
            progress.add(done.files, bad=done.bad)
    return pa.concat_tables(tables).sort_by(_ORDER), len(missing)


def _one_by_one(files: list[ListedFile]) -> list[list[ListedFile]]:
    """Tar files and videos as parts of their own: each holds thousands of pictures."""
    plain = [file for file in files if not (file.is_tar or file.is_video)]
    return [[file] for file in files if file.is_tar or file.is_video] + ([plain] if plain else [])


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


def _read_manifest(images: Store, settings: CatalogSpec) -> tuple[Manifest, str] | None:
    if settings.manifest is None:
        return None
    data, where = _read_beside(images, settings.manifest, "catalog.manifest")
    return read_manifest(data, where), where


def _side_car_groups(
    images: Store, settings: CatalogSpec, files: list[str]
) -> tuple[dict[str, str] | None, dict[str, Any] | None]:
    if settings.groups is None:
        return None, None
    data, where = _read_beside(images, settings.groups, "catalog.groups")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"catalog.groups: {where} is not UTF-8. Save it as CSV in UTF-8.") from error
    matched, left_over = parse_side_car(text, settings.groups).match(files)
    facts = {"named": len(matched), "not_named": len(files) - len(matched), "without_file": _named(left_over)}
    return matched, facts


def _read_beside(images: Store, location: str, setting: str) -> tuple[bytes, str]:
    """A table that a setting names, and where it lies."""
    # Relative to the image folder, which means the same on every machine.
    is_relative = "://" not in location and not os.path.isabs(location)
    folder, name = (None, location) if is_relative else beside(location)
    store, key = (images if folder is None else Store(folder)), name
    try:
        return store.read(key), store.uri(key)
    except ObjectNotFoundError as error:
        raise InputError(
            f"{setting}: {store.uri(key)} is not there. Give an address, or a path relative to images."
        ) from error


def _previous_files(run: Run) -> pa.Table | None:
    previous = run.previous()
    return previous and previous.read_table("catalog", "observations.parquet", ["file", "sha256", "delivery"])


def _refuse_a_bad_delivery(run: Run, before: pa.Table, observations: pa.Table) -> None:
    """A night whose pictures are all broken is a small share of a large archive, and must not pass for that."""

    def content(table: pa.Table) -> pa.Array:
        digest = pc.fill_null(table["sha256"], "")
        return pc.binary_join_element_wise(table["file"], digest, "\0").combine_chunks()

    came = observations.filter(pc.invert(pc.is_in(content(observations), content(before))))
    files = _by_file(came)
    if _bad(files).num_rows >= _MANY_BAD:
        which = f" that came or changed since version {run.spec.previous_version}"
        _refuse_too_many_bad(files, run.spec.settings.catalog, which)


def _by_file(rows: pa.Table) -> pa.Table:
    """One row each: a photo of a thousand tiles, or a video, weighs no more than a broken file."""
    seen = rows.select(["file", "reason", "detail"]).append_column("is_usable", pc.is_null(rows["reason"]))
    wanted = [("is_usable", "any"), ("reason", "first"), ("detail", "first")]
    files = seen.group_by("file", use_threads=False).aggregate(wanted)
    return files.rename_columns(["file", *(column for column, _ in wanted)])


def _bad(files: pa.Table) -> pa.Table:
    """Those of which nothing can be used."""
    return files.filter(pc.invert(files["is_usable"]))


def _refuse_too_many_bad(files: pa.Table, settings: CatalogSpec, which: str = "") -> None:
    bad = _bad(files)
    is_something_left = bool(which) or bad.num_rows < files.num_rows
    if is_something_left and bad.num_rows <= settings.max_quarantined_share * files.num_rows:
        return
    reasons = ", ".join(f"{reason} {n}" for reason, n in _counts(bad["reason"]).items())
    examples = "; ".join(f"{row['file']!r}: {row['reason']}, {row['detail']}" for row in bad.slice(0, 3).to_pylist())
    raise InputError(
        f"images: {bad.num_rows} of {files.num_rows} files{which} cannot be used ({reasons}); "
        f"catalog.max_quarantined_share is {settings.max_quarantined_share:g}. Look at {examples}. "
        "Mend or move them, then run again."
    )


def _without_forgotten(forgotten: Forgotten, observations: pa.Table) -> pa.Table:
    """The observations that nobody has asked to forget."""
    gone = pc.or_kleene(
        pc.is_in(observations["sha256"], pa.array(sorted(forgotten.sha256), pa.string())),
        pc.is_in(observations["image_id"], pa.array(sorted(forgotten.image_ids), pa.string())),
    )
    return observations.filter(pc.invert(gone))


def _join_groups(observations: pa.Table) -> tuple[pa.Table, int]:
    # Bytes that are no picture say nothing: all empty files are equal.
    digests = pc.if_else(pc.equal(observations["status"], "quarantined"), None, observations["sha256"])
    groups, joined = join_groups(observations["group"].to_pylist(), digests.to_pylist())
    return set_columns(observations, group=groups), joined


def _split(
    observations: pa.Table, conflicts: dict[str, list[str]], settings: CatalogSpec
) -> tuple[pa.Table, list[str]]:
    """Set ``split`` of the rows that can be learnt from or tested on; return what a person should know as well."""
    # Also a random split keeps equal bytes together.
    names = ("status", "labels", "image_id", "group" if settings.split == "group" else "sha256", "split")
    rows = enumerate(zip(*(observations[name].to_pylist() for name in names), strict=True))
    usable = [
        (i, labels, group, given)
        for i, (s, labels, image, group, given) in rows
        if s == "ok" and labels and image not in conflicts
    ]
    groups = [group for _, _, group, _ in usable]
    dealt = assign_splits(groups, ["+".join(labels) for _, labels, _, _ in usable], settings.test_share, settings.seed)
    side_of = {group: given for _, _, group, given in usable if given}
    splits = [given or side_of.get(group, split) for (_, _, group, given), split in zip(usable, dealt, strict=True)]
    column: list[str | None] = [None] * observations.num_rows
    for (i, *_), split in zip(usable, splits, strict=True):
        column[i] = split
    observations = set_columns(observations, split=column)
    if not usable or settings.test_share == 0:
        return observations, []
    if all(split == "train" for split in splits):
        note = f"nothing is held out: {len(usable)} images in {len(set(groups))} group(s) cannot be split"
        return observations, [note]
    seen = {label for _, labels, *_ in usable for label in labels}
    tested = {name for (_, labels, *_), split in zip(usable, splits, strict=True) if split == "test" for name in labels}
    sides = set(zip(groups, splits, strict=True))
    torn = len(sides) - len(set(groups))
    notes = (
        [f"{torn} groups are on both sides of the split, as the manifest has them: scores will flatter"] if torn else []
    )
    return observations, notes + [
        f"nothing is held out of {name}: too few images, or all in one group" for name in sorted(seen - tested)
    ]


def _since_previous(run: Run, before: pa.Table, observations: pa.Table, forgotten: set[str]) -> dict[str, list[str]]:
    """Files of the previous version's catalog that are gone or hold other bytes now, by name."""
    settings = run.spec.settings.catalog
    now = dict(zip(observations["file"].to_pylist(), observations["sha256"].to_pylist(), strict=True))
    last = run.spec.delivery
    # A past delivery may be run after later ones were published; their files are not missing.
    expected = {
        file: digest
        for file, digest, delivery in zip(*(column.to_pylist() for column in before.columns), strict=True)
        if file not in forgotten
        and (last is None or settings.deliveries == "none" or delivery is None or delivery <= last)
    }
    return {
        "vanished": sorted(file for file in expected if file not in now),
        "replaced": sorted(f for f, digest in expected.items() if f in now and now[f] != digest),
    }


def _tell_what_changed(version: int | None, changed: dict[str, list[str]]) -> None:
    for what, names in changed.items():
        if names:
            first = ", ".join(names[:_NAMES_IN_LOG]) + (", …" if len(names) > _NAMES_IN_LOG else "")
            logger.warning("catalog: since version %d: %d files %s: %s", version, len(names), what, first)


def _named(names: Iterable[str]) -> dict[str, Any]:
    listed = list(names)
    return {"count": len(listed), "names": listed[:_NAMES_IN_FACTS]}


def _counts(column: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    return dict(sorted(Counter(column.to_pylist()).items()))

"""Forgetting: an image goes out of an archive, for a face, a number plate, or a delivery that should not have come.

In this order, so that the same command goes on after any interruption: a tombstone, parts of vectors without the
image, a new version without it, and at last the deletion of what still shows it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from damage_atlas.contracts import ModelCard, Tombstone
from damage_atlas.embed.part import part_bytes, part_name, read_part
from damage_atlas.errors import InputError, ObjectNotFoundError
from damage_atlas.images import file_uri
from damage_atlas.pipeline import run_pipeline
from damage_atlas.spec import with_overrides
from damage_atlas.store import Run, Store, read_version, start_run
from damage_atlas.store.forgotten import bury, note_deletion, read_forgotten
from damage_atlas.store.runs import read_output, read_run_spec, table_from_bytes
from damage_atlas.store.versions import read_reference, run_model

__all__ = ["forget"]

logger = logging.getLogger(__name__)


def forget(store: Store, archive: str, uris: str | Sequence[str], reason: str = "") -> dict[str, Any]:
    """Take images out of everything that the archive keeps and shows, and publish one version without them.

    The image's file stays where it lies: whoever owns the folder deletes it; it may be gone already. A photo goes with
    its tiles and with every copy of its bytes, a video named by its file with all its frames, a frame alone.

    Args:
        uris: each as the report and ``search`` print it, a path relative to the image folder, an image_id, or a folder
            below the image folder with a / at its end, as a delivery is one.

    Returns:
        tombstone (number), version (the new one), observations, and deleted (objects).

    Raises:
        InputError: the archive has no such image, or nothing else would be left.
        PublishConflictError: another run was published meanwhile; the same command goes on.
    """
    record = read_version(store, archive)
    run = Run.load(store.uri(record.run_key))
    tombstone = _tombstone(run, [uris] if isinstance(uris, str) else uris, reason)
    number = bury(store, archive, tombstone)
    forgotten = read_forgotten(store, archive)
    _replace_parts(store, archive, forgotten.image_ids)
    spec = run.spec
    version = record.version
    if _shows(run, tombstone):
        new = start_run(
            store,
            kind="recluster",
            archive=archive,
            images=spec.images,
            model=run.artifact("embed").facts["model"],
            # Whatever else is broken by now: it must not keep in what has to go.
            settings=with_overrides(spec.settings, ["catalog.max_quarantined_share=1"]),
            delivery=spec.delivery,
            run_id=f"forget-{number:08d}-on-{record.version}",
        )
        for artifact in run_pipeline(new):
            logger.info("%s: sealed in %.1f s", artifact.stage, artifact.seconds)
        version = new.artifact("publish").facts["version"]
        run = new
    deleted = _what_shows_it(store, archive, tombstone, keep=run)
    note_deletion(store, archive, number, deleted)  # first, so that nothing is ever gone without a word
    for key in deleted:
        store.delete(key)
    card = run_model(run)
    kept = _kept_by_model(run, card, tombstone)
    if kept:
        what = "give vectors without them" if card.is_given else "train again without them"
        logger.warning("model %s@%s keeps vectors of %d of these images: %s", card.model, card.version, kept, what)
    return {
        "archive": archive,
        "tombstone": number,
        "version": version,
        "images": len(tombstone.image_ids),
        "files": tombstone.files,
        "deleted": len(deleted),
        "kept_by_model": kept,
    }


def _kept_by_model(run: Run, card: ModelCard, tombstone: Tombstone) -> int:
    if not card.is_given:
        named = read_reference(run.store, card)["image_id"]
    else:
        named = table_from_bytes(read_output(run.store, card.weights))[card.network["named_by"]]
    images = Store(run.spec.images)
    uris = {file_uri(images, file) for file in tombstone.files}
    return len({*tombstone.image_ids, *tombstone.files, *uris} & set(named.to_pylist()))


def _tombstone(run: Run, uris: Sequence[str], reason: str) -> Tombstone:
    table = _catalog(run)
    # Earlier versions too, to which one can go back: what left the archive since, or was cut into other tiles.
    kept = [_catalog(each) for each in _runs(run.store, run.spec.archive) if each.key != run.key]
    whole = pa.concat_tables([table, *kept])
    parts = [_meant_by(run, whole, uri) for uri in uris]
    tombstone = Tombstone(
        asked_for=", ".join(uris),
        files=sorted({file for part in parts for file in part.files}),
        sha256=sorted({digest for part in parts for digest in part.sha256}),
        image_ids=sorted({image_id for part in parts for image_id in part.image_ids}),
        reason=reason,
    )
    left = set(table["image_id"].to_pylist()) - {None}
    if left and left <= set(tombstone.image_ids):
        raise InputError(
            f"{tombstone.asked_for}: nothing else is left in {run.spec.archive}. Remove the whole archive instead."
        )
    return tombstone


def _meant_by(run: Run, table: pa.Table, uri: str) -> Tombstone:
    """What goes with one of the things that were asked for; ``table`` is the catalogs of all runs."""
    named = _named(table, uri)
    if named.num_rows == 0:
        known = read_forgotten(run.store, run.spec.archive).find(uri)
        if known is not None:
            return known
        raise InputError(
            f"{uri} is no image of {run.spec.archive}, in no version that is kept. Give the uri that the report or "
            "`search` prints, its path below the image folder, or its image_id."
        )
    # A video named by its file goes as a whole: with other settings other frames of it would come.
    by_file = pc.or_(pc.equal(named["file"], uri), pa.scalar(uri.endswith("/")))
    whole = named.filter(pc.or_(pc.is_null(named["frame"]), by_file))["sha256"].unique()
    # Of a frame, all its tiles: neighbours overlap.
    frames = _moment(named.filter(pc.is_valid(named["frame"]))).unique()
    gone = table.filter(pc.or_kleene(pc.is_in(table["sha256"], whole), pc.is_in(_moment(table), frames)))
    gone = gone.filter(pc.is_valid(gone["image_id"]))
    return Tombstone(
        asked_for=uri,
        files=gone["file"].to_pylist(),
        sha256=whole.to_pylist(),
        image_ids=gone["image_id"].to_pylist(),
    )


def _catalog(run: Run) -> pa.Table:
    return run.read_table("catalog", "observations.parquet", ["image_id", "uri", "file", "sha256", "frame"])


def _named(table: pa.Table, uri: str) -> pa.Table:
    """What can be forgotten of the observations that somebody may mean by ``uri``."""
    if uri.endswith("/"):
        meant = pc.starts_with(table["file"], uri)
    else:
        names = (table["uri"], table["file"], table["image_id"])
        meant = functools.reduce(pc.or_kleene, (pc.equal(name, uri) for name in names))
    return table.filter(pc.and_(pc.fill_null(meant, False), pc.is_valid(table["image_id"])))


def _runs(store: Store, archive: str) -> Iterator[Run]:
    """The archive's runs that have a catalog."""
    for run_id in store.list_folders(f"archives/{archive}/runs"):
        key = f"archives/{archive}/runs/{run_id}"
        try:
            run = Run(store, key, read_run_spec(store, key))
        except ObjectNotFoundError:
            continue
        if run.stage("catalog").sealed is not None:
            yield run


def _moment(table: pa.Table) -> pa.ChunkedArray:
    """What names a frame of a video, whatever its file is called; null for pictures."""
    return pc.binary_join_element_wise(table["sha256"], table["frame"].cast(pa.string()), "-")


def _shows(run: Run, tombstone: Tombstone) -> bool:
    """Whether it has the image, or keeps its vector for a cluster that may come again."""
    wanted = pa.array(tombstone.image_ids, pa.string())
    tables = [run.read_table("catalog", "observations.parquet", ["image_id"])]
    clusters = run.stage("cluster").sealed
    kept = None if clusters is None else clusters.outputs.get("exemplars.parquet")
    if kept is not None and run.store.exists(kept.key):  # else deleted, when something else was forgotten
        tables.append(run.read_table("cluster", "exemplars.parquet", ["image_id"]))
    return any(pc.any(pc.is_in(table["image_id"], wanted)).as_py() for table in tables)


def _parts_with(store: Store, archive: str, image_ids: set[str]) -> list[tuple[str, pa.Table]]:
    found = []
    for item in list(store.list(f"archives/{archive}/vectors")):
        table = read_part(store.read(item.key), store.uri(item.key))
        if not image_ids.isdisjoint(table["image_id"].to_pylist()):
            found.append((item.key, table))
    return found


def _replace_parts(store: Store, archive: str, image_ids: set[str]) -> None:
    """Beside each part that holds a forgotten image, one with the others: embed then passes over the first."""
    for key, table in _parts_with(store, archive, image_ids):
        kept = table.filter(pc.invert(pc.is_in(table["image_id"], pa.array(sorted(image_ids)))))
        if kept.num_rows:
            name = part_name(kept["image_id"].to_pylist())
            store.create_same(f"{key.rpartition('/')[0]}/{name}", part_bytes(kept))


def _what_shows_it(store: Store, archive: str, tombstone: Tombstone, keep: Run) -> list[str]:
    """Keys of the vectors, indexes, exemplars, pictures, heat maps and reports that hold a forgotten image."""
    gone = set(tombstone.image_ids)
    doomed = [key for key, _ in _parts_with(store, archive, gone)]
    for run in _runs(store, archive):
        key = run.key
        if key == keep.key or not _shows(run, tombstone):
            continue
        doomed += [i.key for i in store.list(f"{key}/report") if not i.key.endswith("artifact.json")]
        doomed += [i.key for i in store.list(f"{key}/index") if i.key.endswith("/index.faiss")]
        doomed += [i.key for i in store.list(f"{key}/cluster") if i.key.endswith("/exemplars.parquet")]
        for item in store.list(f"{key}/explain"):
            name = item.key.rpartition("/")[2]
            if name.endswith(".jpg") and name.removesuffix(".jpg").removesuffix(".heat") in gone:
                doomed.append(item.key)
    return doomed

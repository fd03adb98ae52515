"""The embedding plan: which vectors are there, how the rest is cut into parts; stored, so that a rerun keeps to it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from damage_atlas.contracts import OBSERVATIONS, ModelCard, Output
from damage_atlas.decoding.faults import PASSING_REASONS, QUARANTINE_REASONS
from damage_atlas.embed.part import part_name, read_part
from damage_atlas.errors import ContractError
from damage_atlas.images import SOURCE_COLUMNS, Limits
from damage_atlas.parts import plan_parts, read_ahead
from damage_atlas.store import Run, Stage, Store, load_model_card
from damage_atlas.store.forgotten import refuse_forgotten
from damage_atlas.store.objects import RangeReader, sha256
from damage_atlas.store.runs import read_output, table_from_bytes

ImageRow = dict[str, Any]  # image_id and images.SOURCE_COLUMNS

# Of the reasons why an image got no vector, those that its bytes explain. An image id stands for bytes.
STAYS: Final = QUARANTINE_REASONS.keys() - PASSING_REASONS - {"no_vector"}
# The pixels of a part travel from decoders to the network in one piece.
_LARGEST_PART_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class VectorPart:
    """Images that are embedded together. ``key`` names the part by what it holds: the digest of its image ids."""

    key: str
    wanted: Output  # the plan's table of images
    number: int  # of the table's row group that lists this part's images
    size: int  # images

    def rows(self, store: Store) -> list[ImageRow]:
        """The images, as the plan lists them."""
        reader = RangeReader(lambda start, size: store.read_range(self.wanted.key, start, size), self.wanted.size_bytes)
        with pq.ParquetFile(
            pa.PythonFile(io.BufferedReader(reader, 1 << 16), mode="r"), page_checksum_verification=True
        ) as file:
            rows: list[ImageRow] = file.read_row_group(self.number, use_threads=False).to_pylist()
        return rows


@dataclass(frozen=True)
class EmbedPlan:
    """What a run needs: parts that are there already, and parts to make.

    Attributes:
        failed_before: rows of ``failed.parquet`` of the version before that stay: the same bytes would fail again.
    """

    card: ModelCard
    reused: tuple[Output, ...]
    parts: tuple[VectorPart, ...]
    new_ids: frozenset[str]
    failed_before: tuple[dict[str, str], ...] = ()


def vectors_folder(archive: str, card: ModelCard) -> str:
    """Where all runs of an archive share the vectors of one model version."""
    return f"archives/{archive}/vectors/{card.model}@{card.version}"


def model_of(run: Run) -> ModelCard:
    """The model version the run embeds with: the one it names, or the one it has trained itself."""
    version = run.spec.model_version or (run.spec.run_id if run.spec.kind == "run" else None)
    if version is None:
        raise ContractError(f"{run.uri}: run.yaml names no model version; open the run again.")
    return load_model_card(run.store, run.spec.model, version)


def plan_embedding(run: Run, stage: Stage) -> EmbedPlan:
    """Plan the run's embedding, or read the plan an earlier attempt has stored."""
    card = model_of(run)
    folder = vectors_folder(run.spec.archive, card)
    gone = refuse_forgotten(run)
    stored = stage.stored_plan()
    if stored is None:
        wanted = unique_images(run)
        wanted_ids = set(wanted["image_id"].to_pylist())
        reused, known = _parts_of_use(run.store, folder, wanted_ids, gone)
        failed = _failed_before(run, card, wanted_ids - known)
        settled = [*sorted(known), *(row["image_id"] for row in failed)]
        missing = wanted.filter(pc.invert(pc.is_in(wanted["image_id"], pa.array(settled, pa.string()))))
        size = card.preprocessing["size"]
        rows_per_part = min(run.spec.settings.embed.rows_per_part, max(1, _LARGEST_PART_BYTES // (3 * size * size)))
        table = _table_by_parts(missing, rows_per_part)
        # Named by its bytes: of attempts that race to plan, one plan wins, with its own table.
        output = stage.write_beside_plan(f"wanted-{sha256(table)[:16]}.parquet", table, missing.num_rows)
        stored = stage.plan(
            {
                "model": f"{card.model}@{card.version}",
                "rows_per_part": rows_per_part,
                "wanted": output.model_dump(),
                "reused": [part.model_dump() for part in reused],
                "failed_before": failed,
            }
        )
    output = Output(**stored["wanted"])
    ids = table_from_bytes(read_output(run.store, output), ["image_id"])["image_id"].to_pylist()
    parts = tuple(
        VectorPart(f"{folder}/{part_name(ids[part.rows])}", output, part.number, part.size)
        for part in plan_parts(len(ids), stored["rows_per_part"])
    )
    reused = [Output(**part) for part in stored["reused"]]
    return EmbedPlan(card, tuple(reused), parts, frozenset(ids), tuple(stored.get("failed_before", ())))


def _failed_before(run: Run, card: ModelCard, wanted: set[str]) -> list[dict[str, str]]:
    previous = run.previous()
    settings = run.spec.settings.catalog
    if previous is None or settings.retry_quarantined:
        return []
    if Limits.of(settings) != Limits.of(previous.spec.settings.catalog):
        return []
    if previous.artifact("embed").facts["model"] != f"{card.model}@{card.version}":
        return []
    rows = previous.read_table("embed", "failed.parquet").to_pylist()
    return [row for row in rows if row["image_id"] in wanted and row["reason"] in STAYS]


def unique_images(run: Run) -> pa.Table:
    """``image_id`` and how to read it, for every readable observation; the first in the listing stands for all.

    In the order in which files are best read: tiles of a photo, members of a tar file, frames of a video in turn.
    """
    table = run.read_table("catalog", "observations.parquet", ["image_id", *SOURCE_COLUMNS, "status"])
    table = table.filter(pc.equal(table["status"], "ok")).drop_columns("status")
    table = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    first = table.group_by("image_id", use_threads=False).aggregate([("row", "min")])["row_min"]
    table = table.take(first.combine_chunks()).drop_columns("row")
    holder = pc.coalesce(table["container"], table["file"])
    keys = ["holder", "byte_start", "file", "frame", "tile_y", "tile_x"]
    ordered = table.append_column("holder", holder).sort_by([(key, "ascending") for key in keys])
    return ordered.select([field.name for field in _WANTED])


_WANTED: Final = pa.schema([OBSERVATIONS.field(name) for name in ("image_id", *SOURCE_COLUMNS)])


def _parts_of_use(store: Store, folder: str, wanted: set[str], gone: set[str]) -> tuple[list[Output], set[str]]:
    """Stored parts that hold wanted images and none that was forgotten, and the ids in them."""
    reused: list[Output] = []
    known: set[str] = set()
    keys = [item.key for item in store.list(folder)]
    for key, data in zip(keys, read_ahead(store.read, keys), strict=True):
        ids = read_part(data, store.uri(key))["image_id"].to_pylist()
        # Of parts that overlap, as runs make them that plan side by side, one is enough.
        if any(i in wanted and i not in known for i in ids) and gone.isdisjoint(ids):
            reused.append(Output(key=key, sha256=sha256(data), size_bytes=len(data), rows=len(ids)))
            known.update(ids)
    return reused, known


def _table_by_parts(images: pa.Table, rows_per_part: int) -> bytes:
    """The images as Parquet, a row group for each part, so that a worker reads its own part alone."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, _WANTED, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(images.cast(_WANTED), row_group_size=rows_per_part)
    return sink.getvalue()

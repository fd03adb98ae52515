"""The embedding plan: which vectors are there, how the rest is cut into parts; stored, so that a rerun keeps to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from damage_atlas.contracts import ModelCard
from damage_atlas.embed.part import read_part
from damage_atlas.errors import ContractError
from damage_atlas.images import TILE_COLUMNS
from damage_atlas.parts import plan_parts
from damage_atlas.store import Run, Stage, Store, load_model_card

ImageRow = dict[str, Any]


@dataclass(frozen=True)
class VectorPart:
    """Images that are embedded together. ``key`` names the part by what it holds: the digest of its image ids."""

    key: str
    rows: tuple[ImageRow, ...]  # image_id, file, sha256, tile box


@dataclass(frozen=True)
class EmbedPlan:
    """What a run needs: parts that are there already, and parts to make."""

    card: ModelCard
    reused_keys: tuple[str, ...]
    parts: tuple[VectorPart, ...]


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
    spec = run.spec.settings.embed
    card = model_of(run)
    needed = unique_images(run)
    folder = vectors_folder(run.spec.archive, card)
    found = [item.key for item in run.store.list(folder)]
    wanted = set(needed)
    reused = [key for key in found if not wanted.isdisjoint(_ids_of(run.store, key))]
    stored = stage.plan(
        {"model": f"{card.model}@{card.version}", "rows_per_part": spec.rows_per_part, "reused": reused}
    )
    known: set[str] = set()
    for key in stored["reused"]:
        known |= _ids_of(run.store, key)
    missing = sorted(wanted - known)
    parts = []
    for part in plan_parts(len(missing), stored["rows_per_part"]):
        ids = missing[part.rows]
        name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32]
        parts.append(VectorPart(f"{folder}/vectors-{name}.parquet", tuple(needed[i] for i in ids)))
    return EmbedPlan(card, tuple(stored["reused"]), tuple(parts))


def unique_images(run: Run) -> dict[str, ImageRow]:
    """image_id -> how to read it, for every readable observation; the first file in the listing stands for all."""
    columns = ["image_id", "file", "sha256", *TILE_COLUMNS, "status"]
    table = run.read_table("catalog", "observations.parquet").select(columns)
    unique: dict[str, ImageRow] = {}
    for row in table.to_pylist():
        if row.pop("status") == "ok":
            unique.setdefault(row["image_id"], row)
    return unique


def _ids_of(store: Store, key: str) -> set[str]:
    return set(read_part(store.read(key), store.uri(key))[0]["image_id"].to_pylist())

"""A real image folder, catalogued run by run into a store beside it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from damage_atlas.catalog import build_catalog
from damage_atlas.contracts import OBSERVATIONS, Artifact
from damage_atlas.errors import InputError
from damage_atlas.spec import CatalogSpec, RunSpec, Settings
from damage_atlas.store import Run, Store, open_run

Row = dict[str, Any]


def jpeg(seed: int = 0, width: int = 40, height: int = 32, taken: str | None = None) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    exif = Image.Exif()
    if taken:
        exif.get_ifd(0x8769)[0x9003] = taken
    sink = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(sink, "JPEG", exif=exif.tobytes())
    return sink.getvalue()


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


class Archive:
    """An image folder, and runs over it in a store beside it."""

    def __init__(self, tmp_path: Path) -> None:
        self.images = tmp_path / "images"
        self.images.mkdir()
        self.store = Store(tmp_path / "store")
        self.runs = 0

    def open(self, images: str | None = None, delivery: str | None = None, **catalog: Any) -> Run:
        self.runs += 1
        spec = RunSpec(
            run_id=f"run-{self.runs}",
            kind="train",
            archive="bridge",
            model="net",
            images=images or str(self.images),
            delivery=delivery,
            settings=Settings(catalog=CatalogSpec(**catalog)),
        )
        return open_run(self.store, spec)

    def build(self, **catalog: Any) -> tuple[list[Row], dict[str, Any]]:
        run = self.open(**catalog)
        artifact = build_catalog(run)
        table = run.read_table("catalog", "observations.parquet")
        assert table.schema.equals(OBSERVATIONS)
        rows: list[Row] = table.to_pylist()
        check_ledger(artifact, rows)
        return rows, artifact.facts

    def refused(self, **catalog: Any) -> str:
        """The one line that says why there is no catalog."""
        run = self.open(**catalog)
        with pytest.raises(InputError) as error:
            build_catalog(run)
        assert run.stage("catalog").sealed is None
        assert "\n" not in error.value.message
        assert error.value.exit_code == 2
        assert not error.value.retryable
        return error.value.message


def check_ledger(artifact: Artifact, rows: list[Row]) -> None:
    ledger = artifact.facts["ledger"]
    assert ledger["listed"] == len(rows) == ledger["ok"] + ledger["duplicate"] + ledger["quarantined"]
    assert sum(ledger["reasons"].values()) == ledger["quarantined"]
    assert artifact.counts == {
        "in": len(rows),
        "out": ledger["ok"] + ledger["duplicate"],
        "failed": ledger["quarantined"],
    }
    assert len({row["observation_id"] for row in rows}) == len(rows)
    order = [(row["file"], row["tile_y"] or 0, row["tile_x"] or 0) for row in rows]
    assert order == sorted(order)
    for row in rows:
        assert (row["status"] == "quarantined") == (row["reason"] is not None) == (row["image_id"] is None)
        assert (row["split"] is None) or (row["status"] == "ok" and row["labels"])


def by_file(rows: list[Row]) -> dict[str, Row]:
    return {row["file"]: row for row in rows}

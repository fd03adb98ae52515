"""docs/formats.md against the code: every column, key, reason and setting."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from pydantic import BaseModel

from damage_atlas import contracts
from damage_atlas.contracts import FILES, QUARANTINE_REASONS, REFERENCE, TABLES, vectors_schema
from damage_atlas.spec import ArchiveSpec, RunSpec, Settings
from tests.architecture.repository import read

DOCUMENTS: dict[str, type[BaseModel]] = {
    "`artifact.json`": contracts.Artifact,
    "an output": contracts.Output,
    "the ledger": contracts.Ledger,
    "`versions/00000012.json`": contracts.VersionRecord,
    "`model.json`": contracts.ModelCard,
    "`promotions/00000001.json`": contracts.Promotion,
    "`forgotten/00000001.json`": contracts.Tombstone,
    "`remarks/00000001.json`": contracts.Remark,
    "`alerts.json`": contracts.Alerts,
    "an alert": contracts.Alert,
    "a sighting": contracts.Sighting,
    "`decisions/00000001.json`": contracts.Decision,
    "`run.yaml`": RunSpec,
    "`infra/archives/NAME.yaml`": ArchiveSpec,
}
SCHEMAS = TABLES | {
    "files/*.parquet": FILES,
    "vectors-*.parquet": vectors_schema(16),
    "reference.parquet": REFERENCE,
}


def sections() -> dict[str, list[list[str]]]:
    """Heading -> rows of the table below it, without the table's head."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in read("docs/formats.md").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
            found[heading] = []
        elif line.startswith("|") and not line.startswith("|---"):
            found[heading].append([cell.strip() for cell in line.strip("|").split(" | ")])
    return {heading: rows[1:] for heading, rows in found.items()}


def type_name(kind: pa.DataType) -> str:
    """A column's type as the page writes it; Arrow's own names change from release to release."""
    if pa.types.is_map(kind):
        return f"map of {type_name(kind.key_type)} to {type_name(kind.item_type)}"
    if pa.types.is_fixed_size_list(kind):
        return f"fixed-size list of {type_name(kind.value_type)}"
    if pa.types.is_list(kind):
        return f"list of {type_name(kind.value_type)}"
    if pa.types.is_timestamp(kind):
        return f"timestamp ({kind.unit}, {kind.tz})"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


@pytest.mark.parametrize("table", SCHEMAS)
def test_columns_are_described(table: str) -> None:
    described = [tuple(row[:3]) for row in sections()[f"`{table}`"]]
    schema = SCHEMAS[table]
    assert described == [(f.name, type_name(f.type), "yes" if f.nullable else "no") for f in schema]
    assert all(len(row) == 4 and row[3] for row in sections()[f"`{table}`"])


@pytest.mark.parametrize("heading", DOCUMENTS)
def test_keys_are_described(heading: str) -> None:
    assert [row[0] for row in sections()[heading]] == list(DOCUMENTS[heading].model_fields)


def test_no_other_table_is_described() -> None:
    described = {heading.strip("`") for heading in sections() if heading.endswith(".parquet`")}
    assert described == set(SCHEMAS)


def test_reasons_are_described() -> None:
    assert dict(sections()["Reasons for quarantine"]) == QUARANTINE_REASONS


def test_settings_are_described_with_their_defaults() -> None:
    wanted = []
    for section, defaults in Settings():
        for key, value in defaults:
            value = list(value) if isinstance(value, tuple) else value  # as YAML has it
            text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            wanted.append((f"{section}.{key}", text))
    assert [tuple(row[:2]) for row in sections()["Settings"]] == wanted


def test_schema_version_is_the_code_s() -> None:
    row = next(row for row in sections()["`artifact.json`"] if row[0] == "schema_version")
    assert re.match(rf"{contracts.SCHEMA_VERSION}\b", row[1])

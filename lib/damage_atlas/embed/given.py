"""Vectors that somebody else's model made: a file of them becomes a model version, and embed looks them up.

Axes: N rows, D dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from damage_atlas.contracts import GIVEN, REFERENCE, ModelCard
from damage_atlas.embed.plan import VectorPart, model_of
from damage_atlas.embed.work import PartResult, described, put_part
from damage_atlas.errors import InputError, ObjectExistsError, ObjectNotFoundError
from damage_atlas.store import Run, Store, load_model_card
from damage_atlas.store.objects import beside, sha256
from damage_atlas.store.runs import code_version, read_output, table_bytes, table_from_bytes, write_output

Floats = NDArray[np.float32]

NAMES = ("image_id", "file", "uri")  # columns that may name an image; the first one that is there counts
_PICTURE_SIZE = 160  # what the card says of preprocessing; nothing is forwarded
_EXAMPLES = 3  # names in a message


def adopt_vectors(store: Store, model: str, file: str) -> ModelCard:
    """Make a model version of a Parquet file of vectors; the same file makes the same version.

    The file has a column ``vector`` (a list of numbers, of the same length in every row), and one that names the image:
    ``image_id``, as an earlier run's tables have it, ``file``, relative to the image folder, or ``uri``. Tiles of large
    photos and frames of videos are named by ``image_id`` alone. Rows with a ``label`` are what predicted labels and
    novelty refer to. Vectors are brought to unit length; lengths say nothing here.

    Raises:
        InputError: no such file, or rows that are none.
    """
    folder, name = beside(file)
    try:
        data = Store(folder).read(name)
    except ObjectNotFoundError as error:
        raise InputError(f"--vectors {file}: there is no such file.") from error
    try:
        table = table_from_bytes(data)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"--vectors {file}: not a Parquet file ({' '.join(str(error).split())[:200]}).") from error
    names, labels, vectors_ND = _checked(table, file)
    version = f"given-{sha256(data)[:16]}"
    place = f"models/{model}/{version}"
    kept = pa.table({names.name: names.values, "vector": list(vectors_ND)})
    labelled = [row for row, label in enumerate(labels) if label]
    reference = pa.Table.from_pydict(
        {
            "image_id": [names.values[row] for row in labelled],
            "label": [labels[row] for row in labelled],
            "split": ["train"] * len(labelled),
            "vector": list(vectors_ND[labelled]),
        },
        REFERENCE,
    )
    card = ModelCard(
        model=model,
        version=version,
        network={"kind": GIVEN, "embedding_size": vectors_ND.shape[1], "named_by": names.name},
        preprocessing={"size": _PICTURE_SIZE},
        classes=sorted({labels[row] for row in labelled}),
        parameters=0,
        weights=write_output(store, f"{place}/vectors.parquet", table_bytes(kept), kept.num_rows),
        reference=write_output(store, f"{place}/reference.parquet", table_bytes(reference), len(labelled)),
        train_spec={},
        data_sha256=sha256(data),
        images={"train": len(labelled)},
        scores={},
        code_version=code_version(),
    )
    try:
        store.create(f"{place}/model.json", card.model_dump_json(indent=1).encode())
    except ObjectExistsError:
        card = load_model_card(store, model, version)
    return card


class _Names:
    def __init__(self, name: str, values: list[str]) -> None:
        self.name, self.values = name, values


def _checked(table: pa.Table, file: str) -> tuple[_Names, list[str], Floats]:
    name = next((name for name in NAMES if name in table.column_names), None)
    if name is None or "vector" not in table.column_names:
        raise InputError(
            f"--vectors {file}: columns are {', '.join(table.column_names)}; needed are vector and one of "
            f"{', '.join(NAMES)}."
        )
    values = table[name].to_pylist()
    repeated = [value for value, count in Counter(values).items() if count > 1 or not isinstance(value, str)]
    if repeated:
        raise InputError(
            f"--vectors {file}: {name} must name each row once; {len(repeated)} do not, {repeated[0]!r} for one."
        )
    vectors = table["vector"].to_pylist()
    lengths = Counter(len(vector or ()) for vector in vectors)
    if len(lengths) != 1 or min(lengths) < 2:
        raise InputError(
            f"--vectors {file}: vectors must all have the same length, 2 or more; found {dict(lengths) or 'no rows'}."
        )
    # In float64 first: a square of a large float32 would overflow.
    vectors_ND = np.array(vectors, np.float64)
    norms_N = np.linalg.norm(vectors_ND, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms_N) | (norms_N == 0))
    if len(bad):
        raise InputError(
            f"--vectors {file}: {len(bad)} vectors have no direction (zero, or not finite), that of {values[bad[0]]} "
            "for one."
        )
    labels = table["label"].to_pylist() if "label" in table.column_names else [None] * len(values)
    unit_ND = (vectors_ND / norms_N[:, None]).astype(np.float32)
    return _Names(name, values), [str(label) if label else "" for label in labels], unit_ND


def look_up_parts(run: Run, parts: Sequence[VectorPart]) -> Iterator[PartResult]:
    """The parts' vectors out of the model version's file; images that it does not name fail with ``no_vector``.

    Raises:
        InputError: it names fewer of the images than ``catalog.max_quarantined_share`` allows.
    """
    card = model_of(run)
    table = table_from_bytes(read_output(run.store, card.weights))
    named_by = card.network["named_by"]
    row_of = {name: row for row, name in enumerate(table[named_by].to_pylist())}
    vectors_ND = np.stack(table["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
    found = _rows_of_images(run, named_by, row_of)
    wanted = [row["image_id"] for part in parts for row in part.rows(run.store)]
    missing = [image_id for image_id in wanted if image_id not in found]
    if len(missing) > run.spec.settings.catalog.max_quarantined_share * len(wanted):
        n_found = len(wanted) - len(missing)
        raise InputError(
            f"{card.model}@{card.version} has vectors of {n_found} of {len(wanted)} images. It names them by "
            f"{named_by}: {', '.join(list(row_of)[:_EXAMPLES])}, …; the run has {named_by} "
            f"{_missing_name(run, named_by, missing[0])}. Name files relative to the image folder, tiles and frames by "
            "image_id, or raise catalog.max_quarantined_share."
        )
    for part in parts:
        ids = [row["image_id"] for row in part.rows(run.store)]
        failed = tuple(
            {"image_id": i, "reason": "no_vector", "detail": "the file of vectors does not name it"}
            for i in ids
            if i not in found
        )
        kept = [image_id for image_id in ids if image_id in found]
        if run.store.exists(part.key):
            yield PartResult(part.key, described(run.store, part.key, run.store.read(part.key)), ())
        elif kept:
            folder = part.key.rpartition("/")[0]
            output = put_part(run.store, folder, kept, vectors_ND[[found[image_id] for image_id in kept]])
            yield PartResult(part.key, output, failed)
        else:
            yield PartResult(part.key, None, failed)


def _rows_of_images(run: Run, named_by: str, row_of: dict[str, int]) -> dict[str, int]:
    """Row of the file for each image id that it names."""
    columns = ["image_id", "file", "uri", "tile_x", "frame", "status"]
    table = run.read_table("catalog", "observations.parquet", columns)
    table = table.filter(pc.equal(table["status"], "ok"))
    if named_by != "image_id":  # a name of a file says nothing of which part of it
        table = table.filter(pc.and_(pc.is_null(table["tile_x"]), pc.is_null(table["frame"])))
    pairs = zip(table["image_id"].to_pylist(), table[named_by].to_pylist(), strict=True)
    return {image_id: row_of[name] for image_id, name in pairs if name in row_of}


def _missing_name(run: Run, named_by: str, image_id: str) -> str:
    table = run.read_table("catalog", "observations.parquet", list({"image_id", named_by}))
    return str(table.filter(pc.equal(table["image_id"], image_id))[named_by][0].as_py())

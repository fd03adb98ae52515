"""Vectors that somebody else's model made: adopted, looked up, mapped, reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from damage_atlas.embed import adopt_vectors
from damage_atlas.errors import InputError
from damage_atlas.forget import forget
from damage_atlas.neighbours import read_vectors
from damage_atlas.pipeline import run_pipeline, run_stage
from damage_atlas.query.nearest import search
from damage_atlas.spec import CatalogSpec, ClusterSpec, Settings
from damage_atlas.store import Run, Store, start_run
from tests.support.small_archive import CLASSES, make_labelled

EACH = 20


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("images") / "labelled", each=EACH)


def rows_of(images: Path) -> list[dict[str, Any]]:
    """Around a corner for each class, of any length; that of an image is told by its seed."""
    rows = []
    for path in sorted(images.rglob("*.png")):
        kind, n = path.parent.name, int(path.stem)
        rng = np.random.default_rng([CLASSES.index(kind), n])
        vector = (np.eye(5)[CLASSES.index(kind)] + rng.normal(0, 0.1, 5)) * (1 + n)
        rows.append({"file": f"{kind}/{path.name}", "vector": vector.tolist(), "label": kind if n % 2 else None})
    return rows


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / "vectors.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    return str(file)


def published(store: Store, images: Path, file: str) -> Run:
    card = adopt_vectors(store, "theirs", file)
    settings = Settings(catalog=CatalogSpec(labels="none"), cluster=ClusterSpec(min_neighbours=5))
    model = f"{card.model}@{card.version}"
    run = start_run(store, kind="recluster", archive="a", images=str(images), model=model, settings=settings)
    list(run_pipeline(run))
    return run


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("given")
    return published(Store(folder / "store"), images, written(folder, rows_of(images)))


def test_every_image_has_its_own_vector_at_unit_length(run: Run, images: Path) -> None:
    ids, vectors = read_vectors(run)
    assert len(ids) == len(CLASSES) * EACH
    table = run.read_table("catalog", "observations.parquet", ["image_id", "file"]).to_pylist()
    file_of = {row["image_id"]: row["file"] for row in table}
    wanted = {row["file"]: np.array(row["vector"]) / np.linalg.norm(row["vector"]) for row in rows_of(images)}
    assert np.allclose(vectors, [wanted[file_of[image_id]] for image_id in ids], atol=1e-6)
    assert run.artifact("embed").facts["ledger"]["embedded"] == len(ids)


def test_labels_of_the_file_say_what_the_others_are(run: Run) -> None:
    points = run.read_table("cluster", "points.parquet").to_pylist()
    assert all(p["label"] == p["uri"].split("/")[-2] for p in points)
    assert {p["label_source"] for p in points} == {"predicted"}


def test_the_report_has_pictures_and_no_heat_maps(run: Run) -> None:
    rows = run.read_table("explain", "explanations.parquet").to_pylist()
    assert rows and all(row["method"] == row["target"] == "none" and row["faithfulness"] is None for row in rows)
    outputs = set(run.artifact("report").outputs)
    assert "figures/pictures.png" in outputs and "figures/heat-maps.png" not in outputs
    page = run.read("report", "index.html").decode()
    assert "there are no heat maps" in page and "Heat map of the picture above" not in page


def test_search_goes_by_image_id_and_says_so(run: Run, images: Path) -> None:
    image_id = read_vectors(run)[0][0]
    assert search(run.store, "a", image_id, k=3)[0]["image_id"] == image_id
    with pytest.raises(InputError, match="another model made .theirs@given-.*Ask with an image_id"):
        search(run.store, "a", str(images / "across" / "000.png"))


def test_the_same_file_is_the_same_version(run: Run, images: Path, tmp_path: Path) -> None:
    rows = rows_of(images)
    again = adopt_vectors(run.store, "theirs", written(tmp_path, rows))
    assert f"{again.model}@{again.version}" == run.artifact("embed").facts["model"]
    rows[0]["vector"][0] += 1
    assert adopt_vectors(run.store, "theirs", written(tmp_path, rows)).version != again.version


def test_an_image_without_a_vector_is_quarantined(images: Path, tmp_path: Path) -> None:
    rows = [{key: row[key] for key in ("file", "vector")} for row in rows_of(images)]  # no labels either
    run = published(Store(tmp_path / "store"), images, written(tmp_path, rows[1:]))
    ledger = run.artifact("embed").facts["ledger"]
    assert ledger["quarantined"] == 1 and ledger["reasons"] == {"no_vector": 1}
    points = run.read_table("cluster", "points.parquet").to_pylist()
    assert len(points) == len(rows) - 1 and {p["label"] for p in points} == {None}


@pytest.mark.parametrize("name", ["image_id", "uri"])
def test_images_may_be_named_otherwise(run: Run, images: Path, tmp_path: Path, name: str) -> None:
    table = run.read_table("catalog", "observations.parquet", ["file", name]).to_pylist()
    name_of = {row["file"]: row[name] for row in table}
    rows = [{name: name_of[row["file"]], "vector": row["vector"], "label": None} for row in rows_of(images)]
    card = adopt_vectors(run.store, "theirs", written(tmp_path, rows))
    model = f"{card.model}@{card.version}"
    asked = {"archive": f"by-{name}", "images": str(images), "model": model}
    other = start_run(run.store, kind="recluster", settings=run.spec.settings, **asked)  # type: ignore[arg-type]
    for stage in ("catalog", "embed"):
        run_stage(other, stage)
    assert np.array_equal(read_vectors(other)[1], read_vectors(run)[1])


@pytest.mark.parametrize("name", ["file", "uri"])
def test_forgetting_says_what_the_file_of_vectors_keeps(
    run: Run, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    names = {row["file"]: row[name] for row in run.read_table("catalog", "observations.parquet").to_pylist()}
    rows = [{name: names[row["file"]], "vector": row["vector"]} for row in rows_of(images)]
    store = Store(tmp_path / "store")
    published(store, images, written(tmp_path, rows))
    assert forget(store, "a", rows_of(images)[0]["file"])["kept_by_model"] == 1
    assert "keeps vectors of 1 of these images: give vectors without them" in caplog.text


def test_names_that_fit_no_image_are_refused(images: Path, tmp_path: Path) -> None:
    rows = [row | {"file": f"elsewhere/{row['file']}"} for row in rows_of(images)]
    with pytest.raises(InputError, match=r"vectors of 0 of 60 images.*elsewhere/.*the run has file \w+/\d+\.png"):
        published(Store(tmp_path / "store"), images, written(tmp_path, rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "a", "vector": [1.0, 2.0]}], "columns are name, vector; needed are vector and one of image_id"),
        ([{"file": "a", "vector": [1.0, 2.0]}, {"file": "a", "vector": [1.0, 3.0]}], "'a' for one"),
        ([{"file": "a", "vector": [1.0, 2.0]}, {"file": "b", "vector": [1.0]}], "the same length"),
        ([{"file": "a", "vector": [1.0, 2.0]}, {"file": "b", "vector": [0.0, 0.0]}], "no direction .*b for one"),
        ([{"file": "a", "vector": [1.0, float("nan")]}], "no direction"),
        ([{"file": "a", "vector": [1.0, None]}], "not finite"),
    ],
)
def test_what_is_no_table_of_vectors_is_refused(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        adopt_vectors(Store(tmp_path / "store"), "m", written(tmp_path, rows))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        adopt_vectors(Store(tmp_path / "store"), "m", str(tmp_path / "nothing.parquet"))
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="not a Parquet file"):
        adopt_vectors(Store(tmp_path / "store"), "m", str(tmp_path / "text.parquet"))

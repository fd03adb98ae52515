"""Parts of vectors: what fails is tried again, what overlaps counts once, what is missing in masses stops."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from damage_atlas import images
from damage_atlas.decoding.facts import Limits, Pixels
from damage_atlas.decoding.faults import ImageError
from damage_atlas.decoding.isolated import Decoding, decode
from damage_atlas.embed.part import part_bytes, part_name
from damage_atlas.embed.plan import plan_embedding
from damage_atlas.errors import ContractError
from damage_atlas.neighbours import read_vectors
from damage_atlas.pipeline import run_pipeline, run_stage
from damage_atlas.spec import Settings, with_overrides
from damage_atlas.store import Run, Store, start_run
from damage_atlas.store.runs import table_from_bytes
from tests.support.small_archive import make_delivery, make_labelled

FAST = ["train.input_size=32", "train.iterations=4", "train.batch_size=24", "embed.rows_per_part=8"]


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Store, Path]:
    """A model and the images of one delivery."""
    store = Store(tmp_path / "store")
    labelled = make_labelled(tmp_path / "labelled", each=8)
    settings = with_overrides(Settings(), FAST)
    asked = {"kind": "train", "archive": "a", "model": "m", "images": str(labelled), "run_id": "t"}
    list(run_pipeline(start_run(store, settings=settings, **asked)))  # type: ignore[arg-type]
    return store, make_delivery(tmp_path / "images", "d", 0, each=10)


def begin(archive: tuple[Store, Path], run_id: str, *overrides: str) -> Run:
    settings = with_overrides(Settings(), [*FAST, "catalog.labels=none", *overrides])
    run = start_run(
        archive[0], kind="recluster", archive="a", model="m", images=str(archive[1]), settings=settings, run_id=run_id
    )
    run_stage(run, "catalog")
    return run


def test_an_image_that_failed_is_tried_again_by_the_next_run(archive: tuple[Store, Path]) -> None:
    first = begin(archive, "first")
    path = archive[1] / "d" / "asset-0" / "dots-004.png"
    data = path.read_bytes()
    path.unlink()
    assert run_stage(first, "embed").counts == {"in": 30, "out": 29, "failed": 1}
    path.write_bytes(data)
    second = begin(archive, "second")
    assert run_stage(second, "embed").counts == {"in": 1, "out": 1, "failed": 0}
    assert len(read_vectors(second)[0]) == 30


def test_what_the_decoder_cannot_do_is_not_tried_again_every_night(
    archive: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog could look at it; making its pixels took too long, twice."""
    bad, asked = (archive[1] / "d" / "asset-0" / "dots-004.png").read_bytes(), []

    def hang(data: bytes, limits: Limits) -> Pixels:
        if data == bad:
            asked.append(1)
            raise ImageError("hang", "took longer than 10 s")
        return decode(data, limits)

    class Hanging(Decoding):
        def __init__(self, data: bytes, limits: Limits) -> None:
            super().__init__(data, limits)
            self.asked = data, limits

        def result(self) -> Pixels:
            super().cancel()
            return hang(*self.asked)

    with monkeypatch.context() as patched:
        patched.setattr(images, "Decoding", Hanging)
        patched.setattr(images, "decode", hang)
        first = begin(archive, "first")
        assert run_stage(first, "embed").counts == {"in": 30, "out": 29, "failed": 1}
        list(run_pipeline(first))
        second = begin(archive, "second")
        artifact = run_stage(second, "embed")
        assert artifact.counts == {"in": 0, "out": 0, "failed": 0} and len(asked) == 1
        assert artifact.facts["ledger"]["quarantined"] == 1
        assert second.read_table("embed", "failed.parquet").equals(first.read_table("embed", "failed.parquet"))
        list(run_pipeline(second))
        patient = begin(archive, "patient", "catalog.decode_limit_s=20")
        assert run_stage(patient, "embed").counts == {"in": 1, "out": 0, "failed": 1} and len(asked) == 2
    again = begin(archive, "again", "catalog.retry_quarantined=true")
    assert run_stage(again, "embed").counts == {"in": 1, "out": 1, "failed": 0}


def test_an_attempt_tries_again_what_failed_before_the_seal(
    archive: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(archive, "first")
    hidden = archive[1].with_name("hidden")
    archive[1].rename(hidden)
    archive[1].mkdir()  # a mount point whose share is gone
    with pytest.raises(ContractError, match="mounted") as caught:
        run_stage(run, "embed")
    assert caught.value.retryable and run.stage("embed").sealed is None
    archive[1].rmdir()
    hidden.rename(archive[1])
    assert run_stage(run, "embed").counts == {"in": 30, "out": 30, "failed": 0}


def test_parts_that_overlap_give_each_vector_once(archive: tuple[Store, Path]) -> None:
    store = archive[0]
    first = begin(archive, "first")
    run_stage(first, "embed")
    ids, vectors = read_vectors(first)
    outputs = [o for name, o in first.artifact("embed").outputs.items() if name.startswith("vectors-")]
    tables = [table_from_bytes(store.read(output.key)) for output in outputs]
    # Half of one part and half of another: what a run that planned side by side would have left.
    halves = [tables[0].slice(2), tables[1].slice(0, 3)]
    mixed = pa.concat_tables(half.replace_schema_metadata(None) for half in halves)
    folder = outputs[0].key.rpartition("/")[0]
    store.create(f"{folder}/{part_name(mixed['image_id'].to_pylist())}", part_bytes(mixed))
    second = begin(archive, "second")
    run_stage(second, "embed")
    again, same = read_vectors(second)
    assert again == ids and (same == vectors).all()
    assert second.artifact("embed").counts["in"] == 0


def test_a_part_lists_its_own_images_alone(archive: tuple[Store, Path]) -> None:
    run = begin(archive, "first")
    plan = plan_embedding(run, run.stage("embed"))
    rows = [part.rows(run.store) for part in plan.parts]
    assert [len(part) for part in rows] == [8, 8, 8, 6]
    assert len({row["image_id"] for part in rows for row in part}) == 30
    assert plan_embedding(run, run.stage("embed")) == plan, "a rerun keeps to the plan"

"""An image is taken out of everything, and nothing brings it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from damage_atlas import forget as forgetting
from damage_atlas.errors import ContractError, InputError
from damage_atlas.forget import forget
from damage_atlas.pipeline import run_pipeline, run_stage
from damage_atlas.publish import rollback, verify_run
from damage_atlas.query import published_run, search
from damage_atlas.spec import Settings, with_overrides
from damage_atlas.store import Run, Store, current_version, resolve_model, start_run
from damage_atlas.store.forgotten import bury
from damage_atlas.store.versions import read_reference
from tests.lib.catalog.test_sources import make_video
from tests.support.small_archive import make_delivery, make_labelled, picture

FAST = ["train.input_size=32", "train.iterations=20", "train.batch_size=24", "embed.rows_per_part=16"]


def start(store: Store, images: Path, **arguments: object) -> Run:
    settings = with_overrides(Settings(), [*FAST, "catalog.labels=none"])
    chosen = {"kind": "recluster", "archive": "bridge", "model": "small", "images": str(images), "settings": settings}
    return start_run(store, **(chosen | arguments))  # type: ignore[arg-type]


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Store, Path]:
    """One version of an archive in which two files have the same bytes."""
    store, images = Store(tmp_path / "store"), make_delivery(tmp_path / "archive", "d1", 0, each=14)
    first = images / "d1" / "asset-0" / "dots-000.png"
    (images / "d1" / "asset-1" / "copy of dots.png").write_bytes(first.read_bytes())
    labelled = make_labelled(tmp_path / "labelled", each=8)
    settings = with_overrides(Settings(), FAST)
    list(run_pipeline(start(store, labelled, kind="train", settings=settings)))
    list(run_pipeline(start(store, images)))
    return store, images


FILE = "d1/asset-0/dots-000.png"


def traces(store: Store, image_id: str) -> list[str]:
    """Keys of objects that name the image, tables and pictures alike; what is compressed is looked into as a table."""
    found = []
    for item in store.list("archives"):
        if item.key.endswith(".parquet") and "/files/" not in item.key:
            from damage_atlas.store.runs import table_from_bytes

            text = str(table_from_bytes(store.read(item.key)).to_pydict().get("image_id", ""))
        else:
            text = item.key + store.read(item.key).decode("latin-1")
        found += [item.key] if image_id in text else []
    return found


def test_it_is_gone_with_its_copies_and_does_not_come_back(archive: tuple[Store, Path]) -> None:
    store, images = archive
    image_id = search(store, "bridge", images / FILE, k=1)[0]["image_id"]
    done = forget(store, "bridge", FILE, "a face")
    assert (done["version"], done["images"], done["tombstone"]) == (2, 1, 1)
    assert sorted(done["files"]) == [FILE, "d1/asset-1/copy of dots.png"]
    run = published_run(store, "bridge")
    assert verify_run(run) == []
    for key in traces(store, image_id):
        assert "/runs/" in key and run.key not in key or "/forgotten/" in key, key
    old_tables = [key for key in traces(store, image_id) if "/forgotten/" not in key]
    assert all(key.endswith(".parquet") or key.endswith("artifact.json") for key in old_tables)
    assert not any("/vectors/" in key for key in traces(store, image_id))

    assert all(row["image_id"] != image_id for row in search(store, "bridge", images / FILE, k=60))
    again = start(store, images)
    list(run_pipeline(again))
    catalog = again.artifact("catalog").facts
    assert catalog["forgotten"] == 2 and catalog["ledger"]["listed"] == 41
    assert again.artifact("embed").counts["in"] == 0, "the others are not embedded again"
    assert image_id not in again.read_table("cluster", "points.parquet")["image_id"].to_pylist()


def test_broken_pictures_keep_nothing_in(archive: tuple[Store, Path]) -> None:
    store, images = archive
    for number in range(60):
        (images / "d1" / f"broken-{number}.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be used"):
        run_stage(start(store, images), "catalog")
    assert forget(store, "bridge", FILE)["version"] == 2


def test_what_the_model_keeps_is_said(
    archive: tuple[Store, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model's reference vectors are part of a version that others were made with: only a new training is without."""
    store, images = archive
    assert forget(store, "bridge", FILE)["kept_by_model"] == 0
    reference = set(read_reference(store, resolve_model(store, "small"))["image_id"].to_pylist())
    for file in (tmp_path / "labelled").rglob("*.png"):
        (images / "d1" / "asset-0" / f"learnt-{file.parent.name}-{file.name}").write_bytes(file.read_bytes())
    run = start(store, images)
    list(run_pipeline(run))
    rows = run.read_table("catalog", "observations.parquet").to_pylist()
    learnt = next(row["file"] for row in rows if row["image_id"] in reference)
    assert forget(store, "bridge", learnt)["kept_by_model"] == 1
    assert "keeps vectors of 1 of these images: train again" in caplog.text


def test_older_versions_say_why_they_are_not_whole(archive: tuple[Store, Path]) -> None:
    store, _ = archive
    forget(store, "bridge", FILE)
    problems = verify_run(published_run(store, "bridge", 1))
    assert problems and all("forgotten/00000001.json" in problem for problem in problems)
    with pytest.raises(ContractError, match="forgotten"):
        rollback(published_run(store, "bridge", 1))


def test_what_has_left_the_archive_is_taken_out_of_what_is_kept(archive: tuple[Store, Path]) -> None:
    """Its owner deleted the file, and the next run came before somebody asked for more."""
    store, images = archive
    image_id = search(store, "bridge", images / FILE, k=1)[0]["image_id"]
    (images / FILE).unlink()
    (images / "d1" / "asset-1" / "copy of dots.png").unlink()
    list(run_pipeline(start(store, images)))
    done = forget(store, "bridge", FILE)
    assert (done["version"], done["images"]) == (2, 1) and done["deleted"] > 0
    left = traces(store, image_id)
    assert all("/forgotten/" in key or key.endswith((".parquet", "artifact.json")) for key in left), left
    assert not any("/vectors/" in key or key.endswith("exemplars.parquet") for key in left)
    with pytest.raises(InputError, match="in no version that is kept"):
        forget(store, "bridge", "d1/asset-0/never.png")


def test_what_is_kept_of_a_cluster_that_is_gone_is_forgotten_as_well(archive: tuple[Store, Path]) -> None:
    """Its vectors are carried on from version to version, for the day when its kind comes again."""
    store, images = archive

    def version(clusters: int) -> Run:
        kmeans = ["cluster.method=kmeans", f"cluster.kmeans_clusters={clusters}"]
        settings = with_overrides(Settings(), [*FAST, "catalog.labels=none", *kmeans])
        run = start(store, images, settings=settings)
        list(run_pipeline(run))
        return run

    def exemplars(run: Run) -> set[str]:
        return set(run.read_table("cluster", "exemplars.parquet")["image_id"].to_pylist())

    first = version(3)
    seen = first.read_table("catalog", "observations.parquet").to_pylist()
    dots = {row["file"]: row["image_id"] for row in seen if Path(row["file"]).name.startswith("dots")}
    for file in (images / "d1").rglob("*dots*"):
        file.unlink()
    carried = exemplars(version(2)) & set(dots.values())
    assert len(carried) > 5, "the cluster of dots is gone, and remembered"
    file, image_id = next((file, image) for file, image in dots.items() if image in carried)
    done = forget(store, "bridge", file)
    now = published_run(store, "bridge")
    assert done["version"] == 4 and exemplars(now) & set(dots.values()) == carried - {image_id}
    assert not any(key.endswith("exemplars.parquet") for key in traces(store, image_id))


def test_a_delivery_and_a_single_image_go_together(archive: tuple[Store, Path]) -> None:
    """In one version, under one tombstone; by a folder as by names."""
    store, images = archive
    make_delivery(images, "d2", 100, each=3)
    list(run_pipeline(start(store, images)))
    published = published_run(store, "bridge").read_table("cluster", "points.parquet").to_pylist()
    wrong = {point["image_id"] for point in published if "/d2/" in point["uri"]}
    assert wrong
    done = forget(store, "bridge", ["d2/", FILE], "of another bridge")
    assert (done["version"], done["tombstone"]) == (3, 1) and done["images"] == len(wrong) + 1
    left = published_run(store, "bridge").read_table("cluster", "points.parquet")["image_id"].to_pylist()
    assert not wrong & set(left) and len(set(left)) == len({point["image_id"] for point in published}) - len(wrong) - 1
    again = forget(store, "bridge", ["d2/", FILE])
    assert (again["version"], again["tombstone"], again["deleted"]) == (3, 1, 0)
    with pytest.raises(InputError, match="nothing else is left"):
        forget(store, "bridge", ["d1/"])


def test_repeating_it_changes_nothing(archive: tuple[Store, Path]) -> None:
    store, images = archive
    image_id = search(store, "bridge", images / FILE, k=1)[0]["image_id"]
    forget(store, "bridge", image_id)
    before = sorted(item.key for item in store.list())
    done = forget(store, "bridge", FILE)
    assert (done["version"], done["tombstone"], done["deleted"]) == (2, 1, 0)
    assert sorted(item.key for item in store.list()) == before


@pytest.mark.parametrize("step", ["_replace_parts", "run_pipeline", "_what_shows_it", "note_deletion"])
def test_an_interruption_is_made_good_by_the_same_command(
    archive: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store, images = archive
    image_id = search(store, "bridge", images / FILE, k=1)[0]["image_id"]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(forgetting, step, stop)
        with pytest.raises(KeyboardInterrupt):
            forget(store, "bridge", FILE)
    forget(store, "bridge", FILE)
    assert current_version(store, "bridge") == 2 and verify_run(published_run(store, "bridge")) == []
    assert not any("/vectors/" in key or "/explain/pictures" in key for key in traces(store, image_id))


def test_a_run_that_had_begun_does_not_bring_it_back(archive: tuple[Store, Path]) -> None:
    store, images = archive
    begun = start(store, images, run_id="begun")
    run_stage(begun, "catalog")
    forget(store, "bridge", FILE)
    with pytest.raises(InputError, match="forgotten since"):
        run_stage(begun, "embed")


def test_a_run_that_was_nearly_done_does_not_show_it_again(archive: tuple[Store, Path]) -> None:
    store, images = archive
    begun = start(store, images, run_id="begun")
    for stage in ("catalog", "embed", "index", "cluster"):
        run_stage(begun, stage)
    image_id = search(store, "bridge", str(images / FILE), k=1)[0]["image_id"]
    forget(store, "bridge", FILE)
    for stage in ("explain", "report"):
        with pytest.raises(InputError, match="forgotten since"):
            run_stage(begun, stage)
    assert not any(image_id in item.key for item in store.list("archives"))


def test_a_video_goes_as_a_whole_by_its_file_and_a_frame_alone(tmp_path: Path) -> None:
    """Else other frames of it would come as soon as somebody samples more of them."""
    images = make_delivery(tmp_path / "archive", "d1", 0, each=4)
    make_video(images / "d1" / "crawl.mp4", seconds=4, rate=5)

    def catalog(store: str, every_s: float) -> Run:
        settings = with_overrides(Settings(), ["catalog.labels=none", f"catalog.video_every_s={every_s}"])
        run = start(
            Store(tmp_path / store), images, settings=settings, kind="run", model="m", run_id=f"every-{every_s:g}"
        )
        run_stage(run, "catalog")
        return run

    run = catalog("one", 1.0)
    tombstone = forgetting._tombstone(run, ["d1/crawl.mp4"], "")
    assert len(tombstone.image_ids) == 4 and len(tombstone.sha256) == 1
    bury(run.store, "bridge", tombstone)
    files = catalog("one", 0.5).read_table("catalog", "observations.parquet")["file"].to_pylist()
    assert "d1/crawl.mp4" not in files and len(files) > 0

    run = catalog("two", 1.0)
    frame = next(uri for uri in run.read_table("catalog", "observations.parquet")["uri"].to_pylist() if "#t=2" in uri)
    tombstone = forgetting._tombstone(run, [frame], "")
    assert len(tombstone.image_ids) == 1 and tombstone.sha256 == []


def test_what_other_versions_cut_otherwise_goes_as_well(archive: tuple[Store, Path]) -> None:
    """A folder of which one image left since, and a photo that was whole before and is cut into tiles now."""
    store, images = archive
    Image.fromarray(np.tile(picture("dots", 5), (4, 4, 1))).save(images / "d1" / "asset-0" / "large.png")
    list(run_pipeline(start(store, images)))
    make_delivery(images, "d0", 200, each=2)
    list(run_pipeline(start(store, images)))
    gone = sorted((images / "d0").rglob("*.png"))[0]
    gone.unlink()
    tiled = with_overrides(
        Settings(), [*FAST, "catalog.labels=none", "catalog.tile_above=200", "catalog.tile_size=128"]
    )
    list(run_pipeline(start(store, images, settings=tiled)))
    tombstone = forgetting._tombstone(published_run(store, "bridge"), ["d0/", "d1/asset-0/large.png"], "")
    assert str(gone.relative_to(images)) in tombstone.files
    whole = [i for i in tombstone.image_ids if i in tombstone.sha256]
    assert len(whole) == len(tombstone.sha256) and len(tombstone.image_ids) > len(whole), "the photo whole and in tiles"


def test_what_is_not_there_and_what_is_all_there_is_are_refused(archive: tuple[Store, Path], tmp_path: Path) -> None:
    store, images = archive
    with pytest.raises(InputError, match="no image of bridge"):
        forget(store, "bridge", "nobody.jpg")
    with pytest.raises(InputError, match="no published version"):
        forget(store, "elsewhere", FILE)
    assert list(store.list("archives/bridge/forgotten")) == []

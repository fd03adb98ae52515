"""Data sets in the exact layout that their owners hand out, small: to a manifest, and through the catalog."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from damage_atlas.catalog import build_catalog
from damage_atlas.datasets import DATASETS, Prepared, prepare
from damage_atlas.datasets.severstal import HEIGHT, WIDTH
from damage_atlas.errors import InputError
from damage_atlas.labels import SEWER_ML_IMPORTANCE, is_undamaged
from damage_atlas.spec import RunSpec, Settings, with_overrides
from damage_atlas.store import Store, open_run
from tests.architecture.repository import ROOT


def picture(seed: int, width: int, height: int, kind: str = "JPEG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(sink, kind)
    return sink.getvalue()


def put(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def rows_of(prepared: Prepared) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(prepared.manifest.read_text())))


def catalogued(tmp_path: Path, prepared: Prepared) -> list[dict[str, Any]]:
    """The observations of a run on it, with the settings that the manifest asks for."""
    settings = with_overrides(Settings(), list(prepared.settings))
    spec = RunSpec(
        run_id="r", kind="train", archive="a", model="m", images=str(prepared.images.resolve()), settings=settings
    )
    run = open_run(Store(tmp_path / "store"), spec)
    build_catalog(run)
    return run.read_table("catalog", "observations.parquet").to_pylist()


def run_lengths(mask: np.ndarray) -> str:
    """Kaggle's encoding, from the definition: pixels numbered from 1 down each column."""
    flat, told, start = [0, *mask.T.ravel().tolist(), 0], [], 0
    for i in range(1, len(flat)):
        if flat[i] > flat[i - 1]:
            start = i
        elif flat[i] < flat[i - 1]:
            told += [start, i - start]
    return " ".join(map(str, told))


@pytest.mark.parametrize("form", ["ImageId,ClassId,EncodedPixels", "ImageId_ClassId,EncodedPixels"])
def test_severstal(tmp_path: Path, form: str) -> None:
    defect, sliver, both = (np.zeros((HEIGHT, WIDTH), int) for _ in range(3))
    defect[100:140, 300:420] = 1  # in the squares at 224 and, from 448 on, not; at 0 nothing reaches 256
    sliver[0:5, 20:40] = 1  # 100 pixels
    both[:, 1500:1600] = 1
    masks = {("b.jpg", "3"): defect, ("c.jpg", "1"): sliver, ("c.jpg", "4"): both}
    joined = form.startswith("ImageId_")
    lines = [form]
    for (name, kind), mask in masks.items():
        lines.append(f"{name}_{kind},{run_lengths(mask)}" if joined else f"{name},{kind},{run_lengths(mask)}")
    if joined:
        lines.append("a.jpg_2,")  # the older table has a row for each class
    files: dict[str, bytes | str] = {f"train_images/{n}.jpg": picture(i, WIDTH, HEIGHT) for i, n in enumerate("abc")}
    source = put(tmp_path / "severstal", {**files, "train.csv": "\n".join(lines)})
    prepared = prepare("severstal", source, tmp_path / "m.csv")
    labels: dict[str, list[str]] = {}
    for row in rows_of(prepared):
        labels.setdefault(row["file"], []).append(row["label"])
        assert (row["tile_y"], row["tile_width"], row["tile_height"]) == ("0", "256", "256")
    assert labels == {
        "train_images/a.jpg": ["normal"] * 7,
        "train_images/b.jpg": ["normal", "defect_3", *["normal"] * 5],
        "train_images/c.jpg": [*["normal"] * 5, "defect_4"],
    }
    assert prepared.left_out == {"squares with fewer than 256 pixels of a defect": 1}
    seen = catalogued(tmp_path, prepared)
    assert [r["tile_x"] for r in seen if r["file"].endswith("a.jpg")] == [0, 224, 448, 672, 896, 1120, 1344]
    assert all(r["status"] == "ok" and r["split"] for r in seen)
    assert len({(r["file"], r["split"]) for r in seen}) == 3, "squares of one picture are on one side"


@pytest.mark.parametrize("runs", [
    "1", "0 5", "1 -2", "x y", f"{WIDTH * HEIGHT} 2", "1 99999999999999999999", "1 9223372036854775807",
    " ".join([f"1 {WIDTH * HEIGHT}"] * 1000), "9 3 1 2",
])  # fmt: skip
def test_a_mask_that_is_none(tmp_path: Path, runs: str) -> None:
    table = f"ImageId,ClassId,EncodedPixels\na.jpg,1,{runs}"
    source = put(tmp_path, {"train_images/a.jpg": picture(0, WIDTH, HEIGHT), "train.csv": table})
    with pytest.raises(InputError, match="no run lengths of 1600 x 256"):
        prepare("severstal", source, tmp_path / "m.csv")


@pytest.fixture
def sdnet(tmp_path: Path) -> Path:
    files: dict[str, bytes | str] = {}
    for letter in "DPW":
        for mark in "CU":
            for photo in (1, 2):
                for tile in (1, 2, 3):
                    seed = len(files)
                    files[f"{letter}/{mark}{letter}/700{photo}-{tile}.jpg"] = picture(seed, 256, 256)
    return put(tmp_path / "SDNET2018", files)


def test_sdnet2018(tmp_path: Path, sdnet: Path) -> None:
    prepared = prepare("sdnet2018", sdnet.parent, tmp_path / "m.csv")  # with the folder that the archive makes
    surfaces = ("deck", "pavement", "wall")
    assert prepared.classes == {f"{s}_{c}": 6 for s in surfaces for c in ("crack", "non_crack")}
    assert [is_undamaged(name) for name in ("deck_crack", "deck_non_crack")] == [False, True]
    seen = catalogued(tmp_path, prepared)
    assert {r["group"] for r in seen} == {f"{letter}-700{photo}" for letter in "DPW" for photo in (1, 2)}
    assert {tuple(r["labels"]) for r in seen} == {(name,) for name in prepared.classes}


def test_the_paper_s_part_of_sdnet2018(tmp_path: Path, sdnet: Path) -> None:
    assert DATASETS["sdnet2018"].paper_each == 4000  # with 2,025 and 2,608 cracked ones that makes its 12,633
    prepared = prepare("sdnet2018", sdnet, tmp_path / "m.csv", paper=True, each=4)
    assert prepared.classes == {"deck_crack": 4, "deck_non_crack": 4, "pavement_crack": 4, "pavement_non_crack": 4}
    assert prepared.left_out == {"of walls, which the paper leaves out": 12, "beyond 4 of their class": 8}
    again = prepare("sdnet2018", sdnet.parent, tmp_path / "again.csv", paper=True, each=4)
    drawn, elsewhere = ([row["file"].removeprefix("SDNET2018/") for row in rows_of(p)] for p in (prepared, again))
    assert drawn == elsewhere, "the draw is the same for everybody, whatever folder is named"


def coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> str:
    categories = [{"id": 1, "name": "crack"}, {"id": 7, "name": "spalling + rust"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def sewer_table(frames: dict[str, list[str]]) -> str:
    codes = [*SEWER_ML_IMPORTANCE]
    lines = [",".join(["Filename", "WaterLevel", "VA", *codes, "ND", "Defect"])]
    for name, carried in frames.items():
        flags = ["1" if code in carried else "0" for code in codes]
        lines.append(",".join([name, "5", "0", *flags, "0" if carried else "1", "1" if carried else "0"]))
    return "\n".join(lines)


@pytest.fixture
def sewers(tmp_path: Path) -> Path:
    train = {"00000001.png": [], "00000002.png": ["RB", "FS"], "00000003.png": ["OB"], "00000004.png": ["RO"]}
    held_out = {"01300000.png": [], "01300001.png": ["RB"], "01300002.png": ["FS"], "01399999.png": ["RB"]}
    frames = [*(f"train00/{name}" for name in train), *(f"valid00/{name}" for name in held_out if name[4] == "0")]
    pictures = {frame: picture(i, 352, 288, "PNG") for i, frame in enumerate(frames) if "99999" not in frame}
    tables = {"SewerML_Train.csv": sewer_table(train), "annotations/SewerML_Val.csv": sewer_table(held_out)}
    return put(tmp_path / "sewer-ml", {**pictures, **tables})


def test_sewer_ml(tmp_path: Path, sewers: Path) -> None:
    prepared = prepare("sewer-ml", sewers, tmp_path / "m.csv")
    assert prepared.classes == {"FS": 1, "OB": 1, "RB": 1, "RB+FS": 1, "RO": 1, "normal": 2}
    assert prepared.left_out == {"frames that are not there: an archive was not unpacked": 1}
    assert "train.multi_label=true" in prepared.settings
    seen = {Path(r["file"]).name: r for r in catalogued(tmp_path, prepared)}
    assert seen["00000002.png"]["labels"] == ["FS", "RB"]
    assert [seen[name]["split"] for name in ("00000001.png", "01300001.png")] == ["train", "test"]


def test_the_paper_s_groups_of_sewer_ml(tmp_path: Path, sewers: Path) -> None:
    prepared = prepare("sewer-ml", sewers, tmp_path / "m.csv", paper=True)
    assert prepared.classes == {"crack_break_collapse": 1, "displaced_joint": 1, "normal": 2, "surface_damage": 1}
    assert prepared.left_out["frames with several codes, or others than the paper's"] == 2


def test_coco(tmp_path: Path) -> None:
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": 400, "height": 300} for i in (1, 2)
    ] + [{"id": 3, "file_name": "gone.jpg", "width": 400, "height": 300}]  # fmt: skip
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [350.5, 10, 45, 20], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [10, 10, 200, 280]},
        {"id": 3, "image_id": 1, "category_id": 7, "bbox": [10, 10, 200, 280]},
        {"id": 4, "image_id": 1, "category_id": 7, "bbox": [390, 290, 50, 2]},
    ]
    source = put(
        tmp_path / "coco",
        {
            "annotations/instances_train2017.json": coco(images, boxes),
            "annotations/instances_val2017.json": coco(images[:1], []),
            "train2017/1.jpg": picture(1, 400, 300), "train2017/2.jpg": picture(2, 400, 300),
            "val2017/1.jpg": picture(3, 400, 300), "settings.json": "{}",
        },
    )  # fmt: skip
    prepared = prepare("coco", source, tmp_path / "m.csv")
    told = [(r["file"], r["label"], r["tile_x"], r["tile_y"], r["tile_width"], r["tile_height"], r["split"])
            for r in rows_of(prepared)]  # fmt: skip
    assert told == [
        ("train2017/1.jpg", "crack", "346", "0", "54", "54", "train"),
        ("train2017/1.jpg", "spalling and rust", "0", "0", "336", "300", "train"),
        ("train2017/2.jpg", "normal", "", "", "", "", "train"),
        ("val2017/1.jpg", "normal", "", "", "", "", "test"),
    ]
    assert prepared.left_out == {
        "boxes of crowds, outside, or a few pixels small": 1,
        "pictures that are not there": 1,
    }
    assert {r["status"] for r in catalogued(tmp_path, prepared)} == {"ok"}


def test_coco_in_several_files(tmp_path: Path) -> None:
    """A picture named by two of them, a box with two labels, files without boxes; a folder called latest."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 400, "height": 300} for i in (1, 2)]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100]}
    panoptic = [{"image_id": 1, "segments_info": []}]
    source = put(
        tmp_path / "latest",
        {
            "train/a.json": coco(images, [box, box | {"category_id": 7}]), "train/copy.json": coco(images[:1], []),
            "train/panoptic.json": coco(images, panoptic), "valid/a.json": coco(images[:1], []),
            "extra/a.json": coco(images[:1], []),
            **{f"{folder}/{i}.jpg": picture(i, 400, 300) for folder in ("train", "valid", "extra") for i in (1, 2)},
        },
    )  # fmt: skip
    prepared = prepare("coco", source, tmp_path / "m.csv")
    assert [(r["file"], r["label"], r["split"]) for r in rows_of(prepared)] == [
        ("extra/1.jpg", "normal", ""),
        ("train/1.jpg", "crack+spalling and rust", "train"),
        ("train/2.jpg", "normal", "train"),
        ("valid/1.jpg", "normal", "test"),
    ]
    assert {r["status"] for r in catalogued(tmp_path, prepared)} == {"ok"}


def test_coco_beside_its_pictures_and_names_that_lead_out(tmp_path: Path) -> None:
    put(tmp_path, {"secret.jpg": picture(0, 64, 64)})
    images = [{"id": 1, "file_name": name, "width": 64, "height": 64} for name in ("a.jpg", "../../secret.jpg")]
    source = put(tmp_path / "set", {"only/_annotations.coco.json": coco(images, []), "only/a.jpg": picture(1, 64, 64)})
    prepared = prepare("coco", source, tmp_path / "m.csv")
    assert [(r["file"], r["split"]) for r in rows_of(prepared)] == [("only/a.jpg", "")]
    assert prepared.left_out == {"pictures that are not there": 1}


@pytest.mark.parametrize(
    ("name", "files", "why"),
    [
        ("severstal", {"x.txt": ""}, "no train.csv and train_images"),
        ("sdnet2018", {"x.txt": ""}, "no folder D"),
        ("sdnet2018", {"D/CD/1-1.jpg": ""}, "UD is not there"),
        ("sewer-ml", {"x.txt": ""}, "no SewerML_Train.csv or SewerML_Val.csv"),
        ("sewer-ml", {"SewerML_Train.csv": "Filename,RB\n1.png,1"}, "columns AF, BE"),
        ("sewer-ml", {"SewerML_Val.csv": sewer_table({"1.png": []})}, "nothing to learn from .1 frames that are not"),
        ("sewer-ml", {"SewerML_Val.csv": sewer_table({}), "a/1.png": "", "b/1.png": ""}, "have one name"),
        ("sewer-ml", {"SewerML_Val.csv": b"\xff\xfe"}, "cannot be read"),
        ("severstal", {"train_images/a.jpg": "", "train.csv": "ImageId," + "x" * 200_000}, "cannot be read"),
        ("coco", {"x.txt": ""}, "no file in COCO's format"),
        ("coco", {"a.json": coco([{"id": 1, "file_name": "a" * 300, "width": 9, "height": 9}], [])}, "are not there"),
        (
            "coco",
            {
                "1.jpg": "",
                "a.json": coco(
                    [{"id": 1, "file_name": "1.jpg", "width": 1e999, "height": 9}],
                    [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}],
                ),
            },
            "not in COCO's format",
        ),
        ("coco", {"a.json": "{"}, "is no JSON"),
        ("coco", {"a.json": '{"images": [{}], "annotations": [], "categories": []}'}, "not in COCO's format"),
        ("imagenet", {"x.txt": ""}, "severstal, sdnet2018, sewer-ml, coco are"),
    ],
)
def test_another_folder_is_told_what_was_looked_for(
    tmp_path: Path, name: str, files: dict[str, bytes | str], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        prepare(name, put(tmp_path / "there", files), tmp_path / "m.csv")


@pytest.mark.parametrize("name", DATASETS)
def test_each_has_a_page_that_says_what_to_type(name: str) -> None:
    page = (ROOT / "docs" / "datasets" / f"{name}.md").read_text()
    assert f"damage-atlas dataset {name} " in page

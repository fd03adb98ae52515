"""The demo archive: reproducible, complete in what it plants, and not solved by colour."""

import csv
import hashlib
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from damage_atlas.demo import MODES, TRUTH_COLUMNS, DemoSummary, make_demo
from damage_atlas.demo.plan import MODE_LIST, Plan
from damage_atlas.demo.textures import MATERIALS, make_surface
from damage_atlas.errors import InputError
from damage_atlas.images import ImageError, decode

SIZE = 320
PHOTO_PX = (1536, 1280)
Truth = list[dict[str, str]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return make_demo(tmp_path_factory.mktemp("demo") / "a", size=SIZE, photo_px=PHOTO_PX, workers=1)


@pytest.fixture(scope="module")
def truth(demo: DemoSummary) -> Truth:
    with demo.truth.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def planted(truth: Truth, word: str) -> Truth:
    return [row for row in truth if row["planted"].split(":")[0] == word]


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_same_settings_same_bytes_in_one_process_or_two(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        make_demo(tmp_path / name, size=24, seed=5, photo_px=(512, 512), workers=workers)
    make_demo(tmp_path / "other", size=24, seed=6, photo_px=(512, 512), workers=1)
    one, two, other = (digests(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    pictures = [file for file in one if "IMG_" in file and file in other]
    assert pictures and all(one[file] != other[file] for file in pictures)


def test_truth_lists_every_file_once_and_counts_agree(demo: DemoSummary, truth: Truth) -> None:
    assert tuple(truth[0]) == TRUTH_COLUMNS
    listed = Counter(row["file"] for row in truth)
    assert set(listed.values()) == {1}
    on_disk = {str(path.relative_to(demo.images)) for path in demo.images.rglob("*") if not path.is_dir()}
    assert set(listed) == on_disk - {"labelled/groups.csv"}
    assert demo.counts["labelled"] + demo.counts["archive"] == SIZE
    assert demo.counts["labelled"] == round(0.45 * SIZE)
    assert demo.counts["photos"] == 3
    assert demo.counts["quarantined"] == sum(row["status"] == "quarantined" for row in truth)
    assert demo.counts["duplicate"] == sum(row["status"] == "duplicate" for row in truth)
    assert len(demo.deliveries) == 3 and list(demo.deliveries) == sorted(demo.deliveries)


def test_classes_are_folders_and_every_mode_is_there(demo: DemoSummary, truth: Truth) -> None:
    folders = {path.name for path in demo.labelled.iterdir() if path.is_dir()}
    assert folders == {*demo.classes, "crack+spalling"}
    for side in ("labelled/", "archive/"):
        seen = Counter((row["class"], row["mode"]) for row in truth if row["file"].startswith(side))
        assert set(MODE_LIST) <= set(seen)
    labelled = [row for row in truth if row["file"].startswith("labelled/")]
    assert all(row["file"].split("/")[1] == row["class"] for row in labelled)
    per_mode = Counter(row["mode"] for row in labelled if "+" not in row["class"])
    assert max(per_mode.values()) <= 1.5 * min(per_mode.values())


def test_groups_name_the_structure_of_every_labelled_image(demo: DemoSummary, truth: Truth) -> None:
    with demo.groups.open(newline="", encoding="utf-8") as file:
        groups = {row["file"]: row["group"] for row in csv.DictReader(file)}
    labelled = {row["file"].removeprefix("labelled/"): row["group"] for row in truth if row["file"][:3] == "lab"}
    assert groups == labelled
    sizes = Counter(groups.values())
    assert np.mean(list(sizes.values())) >= 3
    assert len({file.split("/")[0] for file, group in groups.items() if group == "deck-0000"}) > 1


def test_exif_names_asset_inspection_time_and_place(demo: DemoSummary, truth: Truth) -> None:
    archive = [row for row in truth if row["file"].startswith("archive/") and row["planted"] in ("", "photo")]
    for row in archive[::7]:
        with Image.open(demo.images / row["file"]) as picture:
            exif = picture.getexif()
        taken = datetime.strptime(exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal], "%Y:%m:%d %H:%M:%S")
        assert f"{taken:%Y-%m}" == row["delivery"][:7]
        assert exif[ExifTags.Base.ImageDescription] == f"asset={row['asset']}; inspection={row['delivery']}"
        gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
        degrees, minutes, seconds = (float(v) for v in gps[ExifTags.GPS.GPSLatitude])
        assert gps[ExifTags.GPS.GPSLatitudeRef] == "N"
        assert 54.4 < degrees + minutes / 60 + seconds / 3600 < 54.7
        assert gps[ExifTags.GPS.GPSLongitudeRef] == "W"


def test_new_kind_comes_with_the_third_delivery_only(demo: DemoSummary, truth: Truth) -> None:
    new = planted(truth, "new_kind")
    assert len(new) == demo.counts["new_kind"] >= 10
    assert {row["delivery"] for row in new} == {demo.deliveries[2]}
    assert not {row["class"] for row in new} & set(MODES)
    assert Plan(1500, 3, 0).n_new_kind == 35
    assert Plan(200_000, 3, 0).n_new_kind < 500


def test_duplicates_are_copies_and_the_two_sorts_differ_in_asset(demo: DemoSummary, truth: Truth) -> None:
    content: dict[bytes, Truth] = {}
    for row in truth:
        path = demo.images / row["file"]
        if row["file"].startswith("archive/") and row["status"] in ("ok", "duplicate") and not path.is_symlink():
            content.setdefault(path.read_bytes(), []).append(row)
    for row in planted(truth, "duplicate"):
        (original,) = [r for r in content[(demo.images / row["file"]).read_bytes()] if r["status"] == "ok"]
        assert original["asset"] == row["asset"] and original["file"] < row["file"]
    for row in planted(truth, "same_bytes"):
        rows = content[(demo.images / row["file"]).read_bytes()]
        assert len({r["asset"] for r in rows}) == 2 and {r["status"] for r in rows} == {"ok"}
    again = [row for row in planted(truth, "duplicate") if "_copy" not in row["file"]]
    assert again and len(again) < len(planted(truth, "duplicate"))
    accidental = [rows for rows in content.values() if len(rows) > 1 and not any(r["planted"] for r in rows)]
    assert not accidental


def opens(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError, Image.DecompressionBombError):  # Pillow's word for a bad PNG is SyntaxError
        return False
    return True


def test_broken_files_break_as_the_truth_says(demo: DemoSummary, truth: Truth) -> None:
    broken = planted(truth, "corrupt")
    assert {row["reason"] for row in broken} == {
        "empty", "truncated", "not_an_image", "bomb", "corrupt", "too_small", "link_outside",
    }  # fmt: skip
    assert len({row["delivery"] for row in broken}) == 3
    for row in broken:
        path = demo.images / row["file"]
        if row["reason"] == "link_outside":
            assert path.is_symlink() and demo.images.resolve() not in path.resolve().parents
            assert opens(path), "a reader that follows links would take it for one of ours"
        elif row["reason"] == "too_small":
            assert Image.open(path).size == (1, 1)
        else:
            assert not opens(path), row["file"]
            assert path.stat().st_size < 60_000
    (bomb,) = [row for row in broken if row["reason"] == "bomb"]
    with pytest.raises(ImageError) as caught:
        decode((demo.images / bomb["file"]).read_bytes())
    assert caught.value.reason == "bomb"


def test_odd_files_are_readable_and_odd(demo: DemoSummary, truth: Truth) -> None:
    odd: dict[str, Callable[[Image.Image], bool]] = {
        "odd:cmyk": lambda picture: picture.mode == "CMYK",
        "odd:grey": lambda picture: picture.mode == "L",
        "odd:exif_rotated": lambda picture: picture.getexif()[ExifTags.Base.Orientation] == 6,
        "odd:png_16_bit": lambda picture: picture.mode == "I;16" and int(np.asarray(picture).max()) > 255,
        "odd:png_palette": lambda picture: picture.mode == "P" and picture.format == "PNG",
        "odd:gif_animated": lambda picture: getattr(picture, "n_frames", 1) == 3,
    }
    rows = planted(truth, "odd")
    assert {row["planted"] for row in rows} == {*odd, "odd:name"}
    for row in rows:
        with Image.open(demo.images / row["file"]) as picture:
            if row["planted"] != "odd:name":
                assert odd[row["planted"]](picture), row["planted"]
            assert ImageOps.exif_transpose(picture).size == (256, 256)
    names = "".join(row["file"] for row in rows)
    assert all(mark in names for mark in ("\n", '"', "'", "<script>", " ", "ü", "橋"))
    assert {row["status"] for row in rows} == {"ok"}


def test_boxes_of_a_large_photo_lie_on_a_thin_dark_crack(demo: DemoSummary, truth: Truth) -> None:
    photos = planted(truth, "photo")
    assert len(photos) == 3
    for row in photos:
        with Image.open(demo.images / row["file"]) as picture:
            assert picture.size == PHOTO_PX
            grey = np.asarray(picture.convert("L"), dtype=np.float32)
        boxes = [tuple(int(v) for v in box.split()) for box in row["boxes"].split(";")]
        darker = [grey[top:bottom, left:right].min() < 0.5 * np.median(grey) for left, top, right, bottom in boxes]
        assert np.mean(darker) > 0.9
        span = (
            max(b[2] for b in boxes) - min(b[0] for b in boxes),
            max(b[3] for b in boxes) - min(b[1] for b in boxes),
        )
        assert max(span) > 300
        dark_share = (grey < 0.5 * np.median(grey)).mean()
        assert dark_share < 0.01, "the deck is sound but for the crack"


def test_surfaces_are_periodic() -> None:
    """A large photo repeats its texture: the seam must not be steeper than the surface is anywhere else."""
    for material in MATERIALS:
        surface = make_surface(np.random.default_rng(1), material, 128, 1.0)
        for plane in (surface.albedo, surface.height):
            seam = np.abs(plane[0] - plane[-1]).mean()
            assert seam < 1.6 * np.abs(np.diff(plane, axis=0)).mean(), material


def adjusted_rand(truth: list[str], found: np.ndarray) -> float:
    """Adjusted Rand index, from the table of pairs; 1 for equal partitions, about 0 for chance."""
    table = np.zeros((len(set(truth)), int(found.max()) + 1))
    np.add.at(table, (np.unique(truth, return_inverse=True)[1], found), 1)

    def pairs(n: np.ndarray) -> float:
        return float((n * (n - 1) / 2).sum())

    together, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / pairs(np.array([len(truth)]))
    return (together - expected) / ((rows + columns) / 2 - expected)


def k_means(points_ND: np.ndarray, k: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres_KD = points_ND[rng.choice(len(points_ND), k, replace=False)]
    for _ in range(40):
        distance_NK = (centres_KD**2).sum(1) - 2 * points_ND @ centres_KD.T
        nearest: np.ndarray = distance_NK.argmin(1)
        centres_KD = np.stack(
            [points_ND[nearest == c].mean(0) if (nearest == c).any() else centres_KD[c] for c in range(k)]
        )
    return nearest


def test_colour_and_thumbnails_do_not_find_the_modes(demo: DemoSummary, truth: Truth) -> None:
    rows = [row for row in truth if row["planted"] == "" and "+" not in row["class"]]
    modes = [f"{row['class']}/{row['mode']}" for row in rows]
    thumbnails, histograms = [], []
    for row in rows:
        with Image.open(demo.images / row["file"]) as picture:
            thumbnails.append(np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=np.float64).ravel())
            histograms.append(np.sqrt(np.array(picture.histogram()) / 65536))
    for points in (np.stack(thumbnails), np.stack(histograms)):
        scores = [adjusted_rand(modes, k_means(points, len(set(modes)), seed)) for seed in range(3)]
        assert max(scores) <= 0.2
    by_class = adjusted_rand(modes, np.unique([row["class"] for row in rows], return_inverse=True)[1])
    assert 0.4 < by_class < 0.6


def test_wrong_settings_and_a_used_folder_are_refused(demo: DemoSummary, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="size must be at least"):
        make_demo(tmp_path / "x", size=3)
    with pytest.raises(InputError, match="holds an archive already"):
        make_demo(demo.images.parent, size=SIZE)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        make_demo(tmp_path / "file" / "x", size=24)


@pytest.mark.parametrize("deliveries", [1, 4])
def test_any_number_of_deliveries(tmp_path: Path, deliveries: int) -> None:
    progress: list[tuple[int, int]] = []
    summary = make_demo(
        tmp_path / "demo",
        size=20,
        deliveries=deliveries,
        photo_px=(512, 512),
        workers=1,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert [path.name for path in sorted(summary.archive.iterdir())] == list(summary.deliveries)
    assert progress[-1] == (20 + deliveries, 20 + deliveries)


def test_a_very_large_archive_is_planned_in_proportion() -> None:
    """200,000 images: indices map to distinct files, folders stay small, extras stay few."""
    plan = Plan(200_000, 3, 0)
    sample = [plan.archive(j) for j in range(0, plan.n_archive, 997)]
    assert len({shot.file for shot in sample}) == len(sample)
    assert {shot.delivery for shot in sample} == set(plan.deliveries)
    assert plan.n_archive / (plan.n_deliveries * len(plan.assets)) < 1000
    assert plan.n_photos <= 12 and plan.n_copies < 100

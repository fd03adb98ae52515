"""Hidden-subclass recovery: what is merged, what is scored, what is measured again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from damage_atlas.errors import InputError, SpecError
from damage_atlas.experiments.data import open_images
from damage_atlas.experiments.log import interval
from damage_atlas.experiments.subclasses import (
    Plan,
    merge,
    pairings,
    parse_merges,
    parse_variant,
    recover_subclasses,
    subclass_scores,
    summarise,
)
from damage_atlas.images import Source
from damage_atlas.spec import ClusterSpec, Settings, with_overrides
from damage_atlas.train.data import LabelledImages
from tests.support.small_archive import make_labelled, picture

CLASSES = ["a", "b", "c", "d"]
PAIRS = (("a", "b"), ("c", "d"))


def images(each: int = 60) -> LabelledImages:
    labels = [name for name in CLASSES for _ in range(each)]
    splits = ["test" if i % 3 == 0 else "train" for i in range(len(labels))]
    return LabelledImages([f"{i:03d}" for i in range(len(labels))], [Source("f")] * len(labels), labels, splits)


def around(corners_ND: np.ndarray, spread: float = 0.02) -> np.ndarray:
    vectors = corners_ND + np.random.default_rng(0).normal(0, spread, corners_ND.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_six_classes_merge_in_fifteen_ways() -> None:
    found = pairings("fedcba")
    assert len(set(found)) == 15 and all(sorted("".join(map("".join, way))) == list("abcdef") for way in found)
    assert found == pairings("abcdef"), "the order is fixed"


@pytest.mark.parametrize("classes", ["abc", "ab", ""])
def test_what_makes_no_two_pairs_is_refused(classes: str) -> None:
    with pytest.raises(InputError, match="even number of classes, at least four"):
        pairings(classes)


def test_an_embedding_that_keeps_the_fine_classes_scores_well() -> None:
    fine = images()
    vectors = around(np.eye(4)[[CLASSES.index(label) for label in fine.labels]])
    scores = subclass_scores(fine, merge(fine, PAIRS), vectors, ClusterSpec())
    assert scores["fine_knn"] == scores["coarse_knn"] == 1
    # DBSCAN leaves some of so few images to the noise.
    for name, least in (("fine_ari", 0.7), ("fine_ari_k_means", 0.99), ("fine_ari_dbscan_in_embedding", 0.7)):
        assert scores[name] > least > scores["fine_ari_of_the_coarse_classes"], name


def test_an_embedding_that_has_forgotten_them_does_not() -> None:
    fine = images()
    coarse = merge(fine, PAIRS)
    vectors = around(np.eye(2)[[int(label == "c or d") for label in coarse.labels]])
    scores = subclass_scores(fine, coarse, vectors, ClusterSpec())
    assert scores["coarse_knn"] == 1 and scores["fine_knn"] < 0.7
    assert scores["fine_ari"] <= scores["fine_ari_of_the_coarse_classes"] + 0.05


@pytest.fixture(scope="module")
def four_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_labelled(tmp_path_factory.mktemp("images") / "labelled", each=14)
    (folder / "dark").mkdir()
    for n in range(14):
        Image.fromarray(picture("across", n) // 3).save(folder / "dark" / f"{n:03d}.png")
    return folder


SMALL = with_overrides(
    Settings(),
    ["train.input_size=32", "train.iterations=3", "train.batch_size=16", "train.learning_rate=0.002",
     "train.precision=float32", "catalog.test_share=0.4"],
)  # fmt: skip


def test_what_is_measured_is_not_measured_again(four_classes: Path, tmp_path: Path) -> None:
    with open_images(str(four_classes), tmp_path, SMALL) as (found, pixels):
        ways = pairings(found.classes)
        assert len(ways) == 3
        plan = Plan(SMALL, {"plain": (), "crops": ("train.crop_side=0.7",)}, ways[:1], [0])
        file = tmp_path / "rows.jsonl"
        rows = recover_subclasses(found, pixels, plan, file)
        written = file.read_text()
        assert [row["variant"] for row in rows] == ["plain", "crops"]
        assert rows[0]["key"] != rows[1]["key"]
        assert recover_subclasses(found, pixels, plan, file) == rows and file.read_text() == written
        # One more seed: what is there stays, what is missing is added.
        more = recover_subclasses(found, pixels, Plan(SMALL, {"plain": ()}, ways[:1], [0, 1]), file)
        assert more[0] == rows[0] and len(file.read_text().splitlines()) == 3
        # Half a line, as a kill may leave it, is measured again.
        file.write_text(written[: len(written) - 20])
        assert recover_subclasses(found, pixels, plan, file)[0] == rows[0]
        assert [json.loads(line)["variant"] for line in file.read_text().splitlines()] == ["plain", "crops"]


def test_without_held_out_images_there_is_nothing_to_score(four_classes: Path, tmp_path: Path) -> None:
    settings = with_overrides(SMALL, ["catalog.test_share=0"])
    with pytest.raises(InputError, match="no image is held out.*Raise catalog.test_share"):
        with open_images(str(four_classes), tmp_path, settings):
            pass


def test_a_mistake_in_the_last_variant_is_found_before_the_first_training(tmp_path: Path) -> None:
    plan = Plan(SMALL, {"plain": (), "wrong": ("train.temprature=1",)}, [PAIRS], [0])
    with pytest.raises(SpecError, match="temprature"):
        recover_subclasses(images(2), None, plan, tmp_path / "rows.jsonl")  # type: ignore[arg-type]


def test_variants_are_known_or_written_out() -> None:
    assert parse_variant("plain") == ("plain", ())
    assert parse_variant("mine: train.n=3 train.m=2") == ("mine", ("train.n=3", "train.m=2"))
    with pytest.raises(InputError, match="'nothing' is not known"):
        parse_variant("nothing")


def test_a_merging_of_one_s_own() -> None:
    assert parse_merges(["a, b"], CLASSES) == (("a", "b"), ("c",), ("d",))
    assert merge(images(2), parse_merges(["a,b", "c,d"], CLASSES)).classes == ["a or b", "c or d"]
    for texts, why in (
        (["a,x"], "'x' is no class"),
        (["a,b", "b,c"], "'b' is named twice"),
        (["a,b,c,d"], "one class"),
    ):
        with pytest.raises(InputError, match=why):
            parse_merges(texts, CLASSES)


def test_clusters_that_follow_the_photo_are_told_from_those_that_follow_the_damage() -> None:
    fine = replace(images(), groups=[f"photo {i % 6}" for i in range(240)])
    coarse = merge(fine, PAIRS)
    by_damage = around(np.eye(10)[[CLASSES.index(label) for label in fine.labels]])
    by_photo = around(np.eye(10)[[i % 6 for i in range(240)]])
    scores = subclass_scores(fine, coarse, by_damage, ClusterSpec())
    assert scores["within_ami_subtype"] > 0.7 and abs(scores["within_ami_group"]) < 0.1
    scores = subclass_scores(fine, coarse, by_photo, ClusterSpec())
    assert scores["within_ami_group"] > 0.7 and abs(scores["within_ami_subtype"]) < 0.1
    assert "within_ami_group" not in subclass_scores(images(), coarse, by_damage, ClusterSpec()), "no photos are known"


def test_seeds_of_one_pairing_are_no_independent_trials() -> None:
    rows = [
        {"variant": "plain", "pairing": [[way, "x"]], "seed": seed, "score": base + seed / 100}
        for way, base in (("a", 0.2), ("b", 0.8))
        for seed in range(50)
    ]
    (both,) = summarise(rows, ["plain"], ["score"])
    assert both["runs"] == 100 and both["score"][1] == pytest.approx(interval([0.445, 1.045])[1])
    (one,) = summarise(rows[:50], ["plain"], ["score", "not there"])
    assert one["score"] == interval([0.2 + seed / 100 for seed in range(50)]) and "not there" not in one


def test_gains_are_paired() -> None:
    rows = [
        {"variant": name, "pairing": [[way, "x"]], "seed": 0, "score": base + gain}
        for way, base in (("a", 0.2), ("b", 0.8), ("c", 0.5))
        for name, gain in (("plain", 0.0), ("better", 0.1))
    ]
    plain, better = summarise(rows, ["plain", "better"], ["score"])
    assert better["score_gain"] == pytest.approx((0.1, 0.0), abs=1e-9)
    assert plain["score"][1] > 0.5 and "score_gain" not in plain


def test_interval_is_student_s() -> None:
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2, 4.3027 / 3**0.5), rel=1e-4)
    assert interval([1.0]) == (1.0, None)

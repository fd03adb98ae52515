from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage_atlas.catalog.groups import join_groups
from damage_atlas.catalog.splits import assign_splits

rows = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=80)


@settings(deadline=None)
@given(rows, st.floats(0, 0.9), st.integers(0, 5))
def test_no_group_straddles_and_every_class_is_learnt(
    rows: list[tuple[int, int]], test_share: float, seed: int
) -> None:
    groups, classes = [f"g{group}" for group, _ in rows], [f"c{name}" for _, name in rows]
    splits = assign_splits(groups, classes, test_share, seed)
    assert len(splits) == len(rows)
    assert set(splits) <= {"train", "test"}
    sides: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        sides.setdefault(group, set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    learnt = {name for name, split in zip(classes, splits, strict=True) if split == "train"}
    if test_share <= 0.5:
        assert learnt == set(classes)
    assert splits == assign_splits(groups, classes, test_share, seed)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.sampled_from([0.1, 0.25, 0.3, 0.5]))
def test_without_groups_every_class_has_its_share(sizes: list[int], test_share: float) -> None:
    classes = [f"c{i}" for i, size in enumerate(sizes) for _ in range(size)]
    groups = [f"photo-{i}" for i in range(len(classes))]
    splits = assign_splits(groups, classes, test_share, 0)
    tested = Counter(name for name, split in zip(classes, splits, strict=True) if split == "test")
    for name, size in Counter(classes).items():
        assert abs(tested[name] - test_share * size) <= 1


def test_uneven_groups_still_meet_the_share() -> None:
    sizes = [300, 200, 120, 80, 60, 50, 40, 40, 30, 20, 20, 10, 10, 10, 10]
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    classes = [f"c{(i + row) % 3}" for i, size in enumerate(sizes) for row in range(size)]
    splits = assign_splits(groups, classes, 0.3, 0)
    for name in ("c0", "c1", "c2"):
        side = [split for split, of in zip(splits, classes, strict=True) if of == name]
        assert side.count("test") / len(side) == pytest.approx(0.3, abs=0.03)


def test_the_seed_decides() -> None:
    groups, classes = [f"g{i}" for i in range(60)], ["a", "b"] * 30
    assert assign_splits(groups, classes, 0.3, 0) != assign_splits(groups, classes, 0.3, 1)
    order = list(range(60))[::-1]
    shuffled = assign_splits([groups[i] for i in order], [classes[i] for i in order], 0.3, 0)
    assert [shuffled[order.index(i)] for i in range(60)] == assign_splits(groups, classes, 0.3, 0)


@pytest.mark.parametrize(
    ("groups", "classes", "expected"),
    [
        ([], [], []),
        (["g"], ["a"], ["train"]),
        (["g"] * 5, ["a", "b", "a", "b", "a"], ["train"] * 5),
        (["g", "h"], ["a", "b"], ["train", "train"]),  # a class with one image is learnt, not tested
    ],
    ids=["nothing", "one image", "one group", "a class with one image"],
)
def test_degenerate_input(groups: list[str], classes: list[str], expected: list[str]) -> None:
    assert assign_splits(groups, classes, 0.3, 0) == expected


def test_no_test_share_holds_nothing_out() -> None:
    assert set(assign_splits([str(i) for i in range(20)], ["a"] * 20, 0.0, 0)) == {"train"}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=40))
def test_equal_bytes_always_share_a_group(rows: list[tuple[int, int]]) -> None:
    before, digests = [f"g{group}" for group, _ in rows], [f"d{digest}" for _, digest in rows]
    after, joined = join_groups(before, digests)
    of_digest: dict[str, str] = {}
    of_group: dict[str, str] = {}
    for old, digest, new in zip(before, digests, after, strict=True):
        assert of_digest.setdefault(digest, new) == new
        assert of_group.setdefault(old, new) == new
    assert joined == len(set(before)) - len(set(after))


def test_unread_files_join_nothing() -> None:
    assert join_groups(["b", "a"], [None, None]) == (["b", "a"], 0)

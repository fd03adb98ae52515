"""Cluster passports: what the same cluster is, and that ids mean one thing for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from damage_atlas.cluster.passports import Matching, match_clusters


def images(cluster: int, first: int, n: int) -> dict[str, int]:
    return {f"i{k:03d}": cluster for k in range(first, first + n)}


def events(matching: Matching) -> list[tuple[int | None, int | None, str]]:
    return [(event.from_id, event.to_id, event.event) for event in matching.events]


def test_the_first_version_is_all_births() -> None:
    matching = match_clusters(images(0, 0, 10) | images(1, 10, 5) | images(-1, 15, 3), None, 1)
    assert events(matching) == [(None, 1, "born"), (None, 2, "born")] and matching.next_id == 3


def test_the_same_images_are_the_same_cluster_whatever_its_label() -> None:
    old = images(7, 0, 10) | images(4, 10, 10)
    matching = match_clusters(images(0, 10, 10) | images(1, 0, 10), old, 9)
    assert matching.ids == {0: 4, 1: 7} and set(matching.statuses.values()) == {"kept"}


def test_growing_and_shrinking() -> None:
    old = images(1, 0, 10) | images(2, 10, 10)
    matching = match_clusters(images(0, 0, 10) | images(0, 50, 8) | images(1, 10, 6), old, 3)
    assert matching.statuses == {1: "grown", 2: "shrunk"}
    assert matching.new_share[1] == 1 - 10 / 18


def test_a_split_keeps_the_larger_half_and_names_the_other() -> None:
    matching = match_clusters(images(0, 0, 12) | images(1, 12, 8), images(1, 0, 20), 2)
    assert matching.ids == {0: 1, 1: 2}
    assert (1, 2, "split") in events(matching) and matching.statuses[2] == "split"


def test_a_merger_keeps_the_larger_one_and_ends_the_other() -> None:
    old = images(1, 0, 12) | images(2, 12, 8)
    matching = match_clusters(images(0, 0, 20), old, 3)
    assert matching.ids == {0: 1} and (2, 1, "merged") in events(matching) and matching.statuses[1] == "merged"


def test_what_is_new_is_born_and_what_is_gone_has_died() -> None:
    matching = match_clusters(images(0, 50, 10), images(1, 0, 10), 2)
    assert events(matching) == [(None, 2, "born"), (1, None, "died")]


def test_noise_that_becomes_a_cluster_is_born() -> None:
    old: dict[str, int | None] = dict.fromkeys(images(0, 0, 10), None)
    assert events(match_clusters(images(0, 0, 10), old, 5)) == [(None, 5, "born")]


NAMES = [f"i{k}" for k in range(40)]
LABELS = st.dictionaries(st.sampled_from(NAMES), st.integers(-1, 4), min_size=1)
OLD = st.dictionaries(st.sampled_from(NAMES), st.one_of(st.none(), st.integers(1, 5)))


def compact(labels: dict[str, int]) -> dict[str, int]:
    names = {label: i for i, label in enumerate(sorted({v for v in labels.values() if v >= 0}))}
    return {image: names.get(label, -1) for image, label in labels.items()}


@settings(max_examples=200, deadline=None)
@given(LABELS, OLD)
def test_ids_are_never_reused_and_shares_add_up(labels: dict[str, int], old: dict[str, int | None]) -> None:
    labels = compact(labels)
    matching = match_clusters(labels, old, 6)
    found = {label for label in labels.values() if label >= 0}
    assert set(matching.ids) == found and len(set(matching.ids.values())) == len(found)
    fresh = sorted(i for i in matching.ids.values() if i >= 6)
    assert fresh == list(range(6, matching.next_id))
    assert all(i in set(old.values()) for i in matching.ids.values() if i < 6)
    assert set(matching.statuses) == set(matching.ids.values())
    assert all(0 <= event.share <= 1 for event in matching.events)
    ends = [event.from_id for event in matching.events if event.event != "split" and event.from_id is not None]
    assert sorted(ends) == sorted({c for c in old.values() if c is not None}), "each old cluster ends up in one line"


@settings(max_examples=100, deadline=None)
@given(LABELS, OLD, st.randoms())
def test_the_order_of_rows_changes_nothing(labels: dict[str, int], old: dict[str, int | None], random) -> None:  # type: ignore[no-untyped-def]
    labels = compact(labels)
    shuffled = list(labels.items())
    random.shuffle(shuffled)
    backwards = dict(reversed(list(old.items())))
    assert match_clusters(dict(shuffled), backwards, 6) == match_clusters(labels, old, 6)


@settings(max_examples=100, deadline=None)
@given(LABELS, OLD)
def test_renumbering_the_old_clusters_renumbers_the_answer(labels: dict[str, int], old: dict[str, int | None]) -> None:
    labels = compact(labels)
    moved = {image: None if c is None else c + 100 for image, c in old.items()}
    plain, renumbered = match_clusters(labels, old, 6), match_clusters(labels, moved, 200)
    as_moved = {label: i + 100 if i < 6 else i + 194 for label, i in plain.ids.items()}
    assert renumbered.ids == as_moved

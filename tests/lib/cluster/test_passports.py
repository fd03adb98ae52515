"""Cluster passports: what the same cluster is, and that ids mean one thing for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from damage_atlas.cluster.passports import NOISE, NOWHERE, Matching, match_clusters, trace_flows, untold_clusters


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
    old = images(1, 0, 10) | images(2, 10, 10)
    now = images(0, 10, 10) | images(1, 50, 10) | images(-1, 0, 10)
    assert events(match_clusters(now, old, 3)) == [(2, 2, "kept"), (None, 3, "born"), (1, None, "died")]


def test_all_events_of_one_step_by_name() -> None:
    """Kept, grown, shrunk, a split, a merger, a death and a birth at once."""
    old = images(1, 0, 20) | images(2, 20, 20) | images(3, 40, 20) | images(4, 60, 30) | images(5, 90, 20)
    old |= images(6, 110, 12) | images(7, 122, 15)
    now = images(3, 0, 20) | images(0, 20, 20) | images(0, 300, 20) | images(7, 40, 12) | images(-1, 52, 8)
    now |= images(1, 60, 18) | images(2, 78, 12) | images(5, 90, 32) | images(-1, 122, 15) | images(6, 400, 11)
    assert sorted(events(match_clusters(now, old, 8)), key=str) == sorted(
        [
            (1, 1, "kept"), (2, 2, "grown"), (3, 3, "shrunk"), (4, 4, "shrunk"), (4, 8, "split"), (5, 5, "grown"),
            (6, 5, "merged"), (7, None, "died"), (None, 9, "born"),
        ],
        key=str,
    )  # fmt: skip


def test_without_a_shared_image_nobody_can_tell() -> None:
    matching = match_clusters(images(0, 50, 10), images(1, 0, 10), 2)
    assert events(matching) == [(None, 2, "unknown"), (1, None, "unknown")]
    assert matching.statuses == {2: "unknown"} and {event.evidence for event in matching.events} == {"none"}


def test_what_is_put_together_from_parts_of_several_is_not_new() -> None:
    old = {f"i{k:03d}": k // 40 for k in range(160)}
    now = {name: 4 if k % 40 < 10 else cluster for k, (name, cluster) in enumerate(old.items())}
    matching = match_clusters(now, old, 4)
    assert matching.statuses == {0: "shrunk", 1: "shrunk", 2: "shrunk", 3: "shrunk", 4: "unknown"}
    assert [event.evidence for event in matching.events if event.to_id == 4] == ["images"]


def test_a_few_leftovers_of_a_large_cluster_are_no_proof() -> None:
    """Six of a thousand images are left, as noise; the same kind came again in other images."""
    old, now = images(1, 0, 1000), images(-1, 0, 6) | images(0, 1000, 800)
    assert untold_clusters(now, old) == [1]
    assert events(match_clusters(now, old, 2)) == [(None, 2, "unknown"), (1, None, "unknown")]
    assert match_clusters(now, old, 2, {1: {0: 30, NOISE: 2}}).ids == {0: 1}


def test_what_holds_the_leftovers_of_a_cluster_is_not_new() -> None:
    """Sixty of a thousand images are left, in one cluster with forty new ones; three hundred more make another."""
    old = images(1, 0, 1000)
    now = images(0, 0, 60) | images(0, 2000, 40) | images(1, 3000, 300)
    alone = match_clusters({i: label for i, label in now.items() if label == 0}, old, 2)
    assert alone.ids == {0: 1}, "nothing else can tell, and most of it is the old one's"
    for fallen in ({1: 20, 0: 8}, {1: 32}, {NOWHERE: 32}):
        matching = match_clusters(now, old, 2, {1: fallen})
        assert matching.statuses[matching.ids[0]] != "born", fallen


def test_a_handful_of_shared_images_is_no_proof() -> None:
    old, now = images(1, 0, 40), images(0, 37, 40)
    assert untold_clusters(now, old) == [1]
    assert events(match_clusters(now, old, 2)) == [(None, 2, "unknown"), (1, None, "unknown")]
    assert match_clusters(now, old, 2, {1: {0: 30, NOISE: 2}}).ids == {0: 1}


def test_a_rolling_window_keeps_ids_through_exemplars() -> None:
    old = images(3, 0, 40) | images(7, 40, 40)
    now = images(0, 100, 50) | images(1, 150, 30)
    matching = match_clusters(now, old, 8, {3: {1: 29, NOISE: 3}, 7: {0: 25, 1: 2, NOWHERE: 5}})
    assert matching.ids == {1: 3, 0: 7} and matching.new_share == {3: 1.0, 7: 1.0}
    assert matching.statuses == {3: "shrunk", 7: "grown"}
    assert {event.evidence for event in matching.events} == {"exemplars"}


def test_by_exemplars_a_cluster_splits_merges_dies_and_is_born() -> None:
    old = images(1, 0, 40) | images(2, 40, 40) | images(3, 80, 40) | images(4, 120, 40)
    now = images(0, 200, 90) | images(1, 290, 20) | images(2, 310, 15)
    fallen = {1: {0: 3, 1: 4, NOISE: 25}, 2: {0: 25, 1: 5, NOISE: 2}, 3: {NOWHERE: 30, NOISE: 2}, 4: {0: 20}}
    assert set(events(match_clusters(now, old, 5, fallen))) == {
        (4, 4, "grown"), (2, 4, "merged"), (2, 5, "split"), (1, None, "died"), (3, None, "died"), (None, 6, "born"),
    }  # fmt: skip


def test_exemplars_that_scatter_leave_it_unknown() -> None:
    old = images(1, 0, 40)
    now = images(0, 100, 30) | images(1, 130, 30)
    found = events(match_clusters(now, old, 2, {1: {0: 9, 1: 8, NOISE: 15}}))
    assert found == [(None, 2, "unknown"), (None, 3, "unknown"), (1, None, "unknown")]


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


def as_content(matching: Matching, labels: dict[str, int]) -> dict[frozenset[str], object]:
    """What became of each group of images, whatever its label is."""
    groups: dict[int, set[str]] = {}
    for image, label in labels.items():
        if label >= 0:
            groups.setdefault(label, set()).add(image)
    return {
        frozenset(group): (matching.ids[label], matching.statuses[matching.ids[label]])
        for label, group in groups.items()
    }


FALLEN = st.dictionaries(
    st.integers(1, 5), st.dictionaries(st.integers(NOWHERE, 4), st.integers(1, 32), min_size=1, max_size=4), max_size=5
)


@settings(max_examples=200, deadline=None)
@given(LABELS, OLD, FALLEN, st.permutations(range(5)), st.permutations(range(1, 6)))
def test_numbers_decide_nothing(
    labels: dict[str, int], old: dict[str, int | None], fallen: dict[int, dict[int, int]], new: list[int],
    before: list[int],
) -> None:  # fmt: skip
    """Labels and old clusters may be called anything: the same groups get the same names and fates."""
    plain = match_clusters(labels, old, 6, fallen)
    relabelled = {image: label if label < 0 else new[label] for image, label in labels.items()}
    moved = {label: label if label < 0 else new[label] for label in range(NOWHERE, 5)}
    other = match_clusters(
        relabelled, old, 6, {c: {moved[label]: n for label, n in counts.items()} for c, counts in fallen.items()}
    )
    assert as_content(other, relabelled) == as_content(plain, labels)
    assert other.events == plain.events and other.next_id == plain.next_id
    name = dict(zip(range(1, 6), before, strict=True))
    renamed = match_clusters(
        labels, {i: None if c is None else name[c] for i, c in old.items()}, 6,
        {name[c]: counts for c, counts in fallen.items()},
    )  # fmt: skip
    assert renamed.ids == {label: name.get(i, i) for label, i in plain.ids.items()}
    assert [
        (name.get(e.from_id, e.from_id), name.get(e.to_id, e.to_id), e.event)  # type: ignore[arg-type]
        for e in plain.events
    ] == events(renamed)


@settings(max_examples=200, deadline=None)
@given(LABELS, OLD, FALLEN)
def test_what_became_of_an_old_cluster_is_said_once(
    labels: dict[str, int], old: dict[str, int | None], fallen: dict[int, dict[int, int]]
) -> None:
    matching = match_clusters(labels, old, 6, fallen)
    assert len(set(matching.ids.values())) == len(matching.ids)
    assert sorted(i for i in matching.ids.values() if i >= 6) == list(range(6, matching.next_id))
    ends = [e.from_id for e in matching.events if e.event != "split" and e.from_id is not None]
    assert sorted(ends) == sorted({c for c in old.values() if c is not None})
    shares: dict[int, float] = {}
    for event in matching.events:
        if event.from_id is not None:
            shares[event.from_id] = shares.get(event.from_id, 0) + event.share
    assert all(share <= 1 + 1e-9 for share in shares.values()), "no image is counted twice"


@settings(max_examples=200, deadline=None)
@given(LABELS, OLD)
def test_the_flows_hold_every_image_once(labels: dict[str, int], old: dict[str, int | None]) -> None:
    ids = match_clusters(labels, old, 6).ids
    flows = trace_flows(labels, old, ids)
    assert sum(flow.images for flow in flows) == len(labels.keys() | old.keys())
    for side, share in (("from", "share_from"), ("to", "share_to")):
        totals: dict[object, float] = {}
        for flow in flows:
            if (value := getattr(flow, share)) is not None:
                key = (getattr(flow, f"{side}_kind"), getattr(flow, f"{side}_id"))
                totals[key] = totals.get(key, 0) + value
        assert all(abs(total - 1) < 1e-9 for total in totals.values())
    now = {f.to_id: 0 for f in flows if f.to_kind == "cluster"}
    for flow in flows:
        if flow.to_kind == "cluster":
            now[flow.to_id] += flow.images
    assert now == {ids[label]: sum(v == label for v in labels.values()) for label in ids}


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


def test_a_kind_that_comes_again_has_its_id_back() -> None:
    old = images(1, 0, 20)
    now = images(0, 0, 20) | images(1, 100, 12) | images(2, 200, 12)
    dormant = {3: {1: 20, NOISE: 12}, 5: {1: 17, 0: 15}, 7: {2: 10, NOWHERE: 22}}
    matching = match_clusters(now, old, 9, dormant=dormant)
    assert matching.ids == {0: 1, 1: 3, 2: 9} and matching.next_id == 10
    assert (3, 3, "returned") in events(matching) and matching.statuses[3] == "returned"
    assert (None, 9, "born") in events(matching), "a third of the exemplars is no return"
    # One cluster comes back once, and what is an old one, or a part of it, is not asked.
    twice = match_clusters(now, old, 9, dormant={3: {1: 20, 2: 12}, 4: {0: 32}})
    assert twice.ids == {0: 1, 1: 3, 2: 9}
    split = match_clusters(images(0, 0, 12) | images(1, 12, 8), images(1, 0, 20), 9, dormant={3: {1: 32}})
    assert (1, 9, "split") in events(split)

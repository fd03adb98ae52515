"""Cluster passports: ids given at birth, kept from version to version by shared images, never given twice. Pure.

Events after MONIC (Spiliopoulou et al. 2006): kept, grown, shrunk, split, merged, died, born.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

_MATCH_SHARE = 0.5  # of either cluster's shared images: what makes two clusters the same one
_ORIGIN_SHARE = 0.3  # of a new cluster's images: with fewer old ones it came from nowhere
_GROWN, _SHRUNK = 1.25, 0.8  # size now / size before


@dataclass(frozen=True)
class Event:
    """One line of the lineage; ``shared`` images are ``share`` of those of ``from_id`` that still exist."""

    from_id: int | None
    to_id: int | None
    event: str
    shared: int
    share: float


@dataclass(frozen=True)
class Matching:
    """What ``match_clusters`` found: label of this run -> persistent id, events, and the next id that is free."""

    ids: dict[int, int]
    events: list[Event]
    next_id: int
    statuses: dict[int, str] = field(default_factory=dict)  # persistent id -> status of its cluster
    new_share: dict[int, float] = field(default_factory=dict)  # persistent id -> share of images not seen before


def match_clusters(labels: dict[str, int], old: dict[str, int | None] | None, next_id: int) -> Matching:
    """Give this run's clusters the ids of the previous version's where they hold the same images.

    Args:
        labels: image_id -> label of this run, -1 for noise.
        old: image_id -> cluster id of the previous version, None for noise; None without a previous version.
        next_id: the first id never given.
    """
    old = old or {}
    now: dict[int, list[str]] = defaultdict(list)
    for image_id, label in labels.items():
        if label >= 0:
            now[label].append(image_id)
    before: Counter[int] = Counter(c for c in old.values() if c is not None)
    surviving: Counter[int] = Counter(c for i, c in old.items() if c is not None and i in labels)
    shared: dict[tuple[int, int], int] = {}
    old_images: dict[int, int] = {}
    for label in sorted(now):
        known = [i for i in now[label] if i in old]
        old_images[label] = len(known)
        for cluster, count in sorted(Counter(c for i in known if (c := old[i]) is not None).items()):
            shared[cluster, label] = count

    ids: dict[int, int] = {}
    taken: set[int] = set()
    # Largest overlap first; ties by id and by the size-ordered label, so that row order never matters.
    for (cluster, label), count in sorted(shared.items(), key=lambda item: (-item[1], item[0])):
        whole = count >= _MATCH_SHARE * surviving[cluster]
        mostly = count >= _MATCH_SHARE * max(old_images[label], 1) and count >= _ORIGIN_SHARE * surviving[cluster]
        from_old = count >= _ORIGIN_SHARE * len(now[label]) or whole
        if cluster not in taken and label not in ids and from_old and (whole or mostly):
            ids[label] = cluster
            taken.add(cluster)

    events: list[Event] = []
    statuses: dict[int, str] = {}
    for label in sorted(now):
        sources = {c: n for (c, other), n in shared.items() if other == label}
        if label in ids:
            cluster = ids[label]
            ratio = len(now[label]) / before[cluster]
            event = "grown" if ratio >= _GROWN else "shrunk" if ratio <= _SHRUNK else "kept"
            events.append(_event(cluster, cluster, event, sources[cluster], surviving))
            statuses[cluster] = event
            continue
        ids[label], next_id = next_id, next_id + 1
        origin = max(sources, key=lambda c: (sources[c], -c), default=None)
        if origin is not None and sources[origin] >= _ORIGIN_SHARE * len(now[label]):
            events.append(_event(origin, ids[label], "split", sources[origin], surviving))
            statuses[ids[label]] = "split"
        else:
            events.append(Event(None, ids[label], "born", 0, 0.0))
            statuses[ids[label]] = "born"
    for cluster in sorted(before):
        if cluster in taken:
            continue
        targets = {label: n for (c, label), n in shared.items() if c == cluster}
        heir = max(targets, key=lambda label: (targets[label], -label), default=None)
        if heir is not None and targets[heir] >= _MATCH_SHARE * surviving[cluster]:
            events.append(_event(cluster, ids[heir], "merged", targets[heir], surviving))
            statuses[ids[heir]] = "merged"
        else:
            events.append(Event(cluster, None, "died", 0, 0.0))
    new_share = {ids[label]: 1 - old_images[label] / len(images) for label, images in now.items()}
    return Matching(ids, events, next_id, statuses, new_share)


def _event(from_id: int, to_id: int, event: str, count: int, surviving: Counter[int]) -> Event:
    return Event(from_id, to_id, event, count, count / max(surviving[from_id], 1))

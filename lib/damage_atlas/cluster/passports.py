"""Cluster passports: ids given at birth, kept from version to version, never given twice. Pure.

Two versions' clusters are matched on the images that both hold. Where too few are shared, on exemplars: a fair draw of
the old cluster's images, looked up among the new vectors (exemplars.py). Where neither can tell, the answer is
``unknown``, never ``born``.

A cluster that died, or of which nobody could tell, keeps its exemplars for a while: where its kind comes again, it has
its id, its name and its notes back (``returned``).

Events after MONIC (Spiliopoulou et al. 2006): kept, grown, shrunk, split, merged, died, born.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Evidence = Literal["images", "exemplars", "none"]

NOISE, NOWHERE = -1, -2  # where an exemplar may fall beside a cluster: among noise, or near no image at all

_MATCH_SHARE = 0.5  # of either cluster's shared images: what makes two clusters the same one
_ORIGIN_SHARE = 0.3  # of a new cluster's images: with fewer old ones it came from nowhere
_GROWN, _SHRUNK = 1.25, 0.8  # size now / size before
_ENOUGH_SHARED = 5  # images of an old cluster, or all it had: with fewer its exemplars are asked
_ENOUGH_SHARE = 0.1  # likewise of all it had
_SPLIT_SHARE = 0.1  # of an old cluster's exemplars: what makes an unclaimed cluster a part of it
_FAINT_SHARE = 0.2  # of an old cluster's exemplars that fall into one cluster: with fewer it is gone


@dataclass(frozen=True)
class Event:
    """One line of the lineage.

    Attributes:
        shared: images of ``from_id`` that are in ``to_id`` now.
        share: of the images of ``from_id`` that still exist; by the evidence of exemplars, of its exemplars.
    """

    from_id: int | None
    to_id: int | None
    event: str
    shared: int = 0
    share: float = 0.0
    evidence: Evidence = "images"


@dataclass(frozen=True)
class Matching:
    """What ``match_clusters`` found: label of this run -> persistent id, events, and the next id that is free."""

    ids: dict[int, int]
    events: list[Event]
    next_id: int
    statuses: dict[int, str] = field(default_factory=dict)  # persistent id -> status of its cluster
    new_share: dict[int, float] = field(default_factory=dict)  # persistent id -> share of images not seen before


@dataclass(frozen=True)
class Flow:
    """How many images went from one place of the previous version to one of this; see ``trace_flows``."""

    from_kind: str  # cluster, noise, absent
    from_id: int | None
    to_kind: str
    to_id: int | None
    images: int
    share_from: float | None  # of the images of that place in the previous version; null from absent
    share_to: float | None  # of the images of that place in this version; null to absent


@dataclass(frozen=True)
class _Link:
    """That a cluster of this run is an old one, by one kind of evidence."""

    shared: int
    share: float  # of the old cluster's shared images, or of its exemplars
    weight: float  # images that stand behind it
    mostly: bool  # most of what is known of the new cluster comes from the old one
    from_old: bool  # enough of the new cluster is old for it to be the old one
    evidence: Evidence

    @property
    def matches(self) -> bool:
        whole = self.share >= _MATCH_SHARE
        return (self.from_old or whole) and (whole or self.mostly and self.share >= _ORIGIN_SHARE)


def untold_clusters(labels: Mapping[str, int], old: Mapping[str, int | None] | None) -> list[int]:
    """Old clusters that the images both versions hold cannot place, ascending."""
    old = old or {}
    before = Counter(c for c in old.values() if c is not None)
    surviving = Counter(c for i, c in old.items() if c is not None and i in labels)
    enough = {c: max(min(size, _ENOUGH_SHARED), _ENOUGH_SHARE * size) for c, size in before.items()}
    return sorted(c for c in before if surviving[c] < enough[c])


def match_clusters(
    labels: Mapping[str, int],
    old: Mapping[str, int | None] | None,
    next_id: int,
    exemplars: Mapping[int, Mapping[int, int]] | None = None,
    dormant: Mapping[int, Mapping[int, int]] | None = None,
) -> Matching:
    """Give this run's clusters the ids of the previous version's where they are the same.

    How labels are numbered, how old clusters are, and the order of images change nothing.

    Args:
        labels: image_id -> label of this run, -1 for noise.
        old: image_id -> cluster id of the previous version, None for noise; None without a previous version.
        next_id: the first id never given.
        exemplars: for each of ``untold_clusters`` whose exemplars could be looked up: label, ``NOISE`` or ``NOWHERE``
            -> how many fell there.
        dormant: the same for clusters that are not in the previous version any more.
    """
    old, exemplars = old or {}, exemplars or {}
    now: dict[int, list[str]] = defaultdict(list)
    for image_id, label in labels.items():
        if label >= 0:
            now[label].append(image_id)
    before: Counter[int] = Counter(c for c in old.values() if c is not None)
    untold = set(untold_clusters(labels, old))
    by_exemplars = {c: exemplars[c] for c in untold if sum(exemplars.get(c, {}).values())}
    known = {label: [i for i in images if i in old] for label, images in now.items()}
    # One kind of evidence for each old cluster, so that its shares add up.
    by_images = _image_links(labels, old, now, known)
    if few := untold - set(by_exemplars):
        # Few are left, and nothing else can tell: what is theirs by most of its images is theirs.
        untold -= few & {c for (c, label), link in by_images.items() if link.shared >= _MATCH_SHARE * len(now[label])}
    links = {pair: link for pair, link in by_images.items() if pair[0] not in untold}
    links |= _exemplar_links(by_exemplars, before, now)
    untold -= set(by_exemplars)

    # Larger first, then by what it holds: numbers say nothing, and must not decide.
    label_order = {label: n for n, label in enumerate(sorted(now, key=lambda x: (-len(now[x]), min(now[x]))))}
    first_image: dict[int, str] = {}
    for image_id, cluster in old.items():
        if cluster is not None:
            first_image[cluster] = min(image_id, first_image.get(cluster, image_id))
    old_order = {c: n for n, c in enumerate(sorted(before, key=lambda x: (-before[x], first_image[x])))}

    ids: dict[int, int] = {}
    taken: set[int] = set()
    ranked = sorted(
        links.items(),
        key=lambda x: (x[1].evidence != "images", -x[1].weight, old_order[x[0][0]], label_order[x[0][1]]),
    )
    for (cluster, label), link in ranked:
        if cluster not in taken and label not in ids and link.matches:
            ids[label] = cluster
            taken.add(cluster)

    placed = taken | {cluster for (cluster, _), link in links.items() if link.share >= _MATCH_SHARE}
    events: list[Event] = []
    statuses: dict[int, str] = {}
    for label in sorted(now, key=label_order.__getitem__):
        if label in ids:
            cluster = ids[label]
            ratio = len(now[label]) / before[cluster]
            event = "grown" if ratio >= _GROWN else "shrunk" if ratio <= _SHRUNK else "kept"
            events.append(_event(cluster, cluster, event, links[cluster, label]))
        else:
            sources = {c: link for (c, other), link in links.items() if other == label}
            origin = max(sources, key=lambda c: (sources[c].weight, -old_order[c]), default=None)
            was_clustered = sum(old[image_id] is not None for image_id in known[label])
            sizes = len(now[label]), len(known[label]), was_clustered
            found = _origin(next_id, origin, sources, placed, sizes, untold)
            back = _returned(label, dormant or {}, taken) if found.event in ("born", "unknown") else None
            if back is None:
                ids[label], next_id = next_id, next_id + 1
            else:
                cluster, share = back
                ids[label], found = cluster, Event(cluster, cluster, "returned", share=share, evidence="exemplars")
                taken.add(cluster)
            events.append(found)
        statuses[ids[label]] = events[-1].event
    for cluster in sorted(before, key=old_order.__getitem__):
        if cluster in taken:
            continue
        targets = {label: link for (c, label), link in links.items() if c == cluster}
        heir = max(targets, key=lambda label: (targets[label].weight, -label_order[label]), default=None)
        if heir is not None and targets[heir].share >= _MATCH_SHARE:
            events.append(_event(cluster, ids[heir], "merged", targets[heir]))
            statuses[ids[heir]] = "merged"
            continue
        evidence: Evidence = "exemplars" if cluster in by_exemplars else "none" if cluster in untold else "images"
        faint = evidence == "exemplars" and heir is not None and targets[heir].share >= _FAINT_SHARE
        event = "unknown" if faint or evidence == "none" else "died"
        events.append(Event(cluster, None, event, evidence=evidence))
    new_share = {ids[label]: 1 - len(known[label]) / len(images) for label, images in now.items()}
    return Matching(ids, events, next_id, statuses, new_share)


def _image_links(
    labels: Mapping[str, int],
    old: Mapping[str, int | None],
    now: Mapping[int, list[str]],
    known: Mapping[int, list[str]],
) -> dict[tuple[int, int], _Link]:
    surviving = Counter(c for i, c in old.items() if c is not None and i in labels)
    links: dict[tuple[int, int], _Link] = {}
    for label, images in known.items():
        for cluster, count in Counter(c for i in images if (c := old[i]) is not None).items():
            links[cluster, label] = _Link(
                shared=count,
                share=count / surviving[cluster],
                weight=count,
                mostly=count >= _MATCH_SHARE * len(images),
                from_old=count >= _ORIGIN_SHARE * len(now[label]),
                evidence="images",
            )
    return links


def _exemplar_links(
    by_exemplars: Mapping[int, Mapping[int, int]], before: Mapping[int, int], now: Mapping[int, list[str]]
) -> dict[tuple[int, int], _Link]:
    """Exemplars are a fair draw: a share of them stands for as large a share of the old cluster's images."""
    weights: dict[tuple[int, int], float] = {}
    shares: dict[tuple[int, int], float] = {}
    for cluster, fallen in by_exemplars.items():
        for label, count in fallen.items():
            if label in now and count:
                shares[cluster, label] = count / sum(fallen.values())
                weights[cluster, label] = before[cluster] * shares[cluster, label]
    of_label: Counter[int] = Counter()
    for (_, label), weight in sorted(weights.items()):
        of_label[label] += weight  # type: ignore[assignment]
    return {
        (cluster, label): _Link(
            shared=0,
            share=shares[cluster, label],
            weight=weight,
            mostly=weight >= _MATCH_SHARE * of_label[label],
            from_old=True,
            evidence="exemplars",
        )
        for (cluster, label), weight in weights.items()
    }


def _returned(label: int, dormant: Mapping[int, Mapping[int, int]], taken: set[int]) -> tuple[int, float] | None:
    """The dormant cluster of whose exemplars most fall into this one, and their share; the oldest one of equals."""
    shares = {
        cluster: fallen[label] / sum(fallen.values())
        for cluster, fallen in dormant.items()
        if cluster not in taken and fallen.get(label)
    }
    cluster = max(shares, key=lambda c: (shares[c], -c), default=None)
    return None if cluster is None or shares[cluster] < _MATCH_SHARE else (cluster, shares[cluster])


def _origin(
    to_id: int,
    origin: int | None,
    sources: Mapping[int, _Link],
    placed: set[int],
    sizes: tuple[int, int, int],
    untold: set[int],
) -> Event:
    """Where a cluster that is no old one comes from.

    Args:
        placed: the old clusters of which most was found.
        sizes: of its images all, those of the previous version, and those that lay in a cluster there.
    """
    size, known, was_clustered = sizes
    if origin is not None:
        link = sources[origin]
        if link.evidence == "images" and link.shared >= _ORIGIN_SHARE * size:
            return _event(origin, to_id, "split", link)
        if link.evidence == "exemplars" and known < _ORIGIN_SHARE * size:
            if link.share >= _SPLIT_SHARE and origin in placed:
                return _event(origin, to_id, "split", link)
            return Event(None, to_id, "unknown", evidence="exemplars")
    if was_clustered >= _MATCH_SHARE * size:
        # Put together from parts of several, of none so much that it would be a part of that one; or from what is left
        # of one whose kind came again elsewhere.
        return Event(None, to_id, "unknown", evidence="images")
    if untold and known < _ORIGIN_SHARE * size:
        # It may be one of those that nothing could place.
        return Event(None, to_id, "unknown", evidence="none")
    return Event(None, to_id, "born")


def _event(from_id: int, to_id: int, event: str, link: _Link) -> Event:
    return Event(from_id, to_id, event, link.shared, link.share, link.evidence)


def trace_flows(labels: Mapping[str, int], old: Mapping[str, int | None] | None, ids: Mapping[int, int]) -> list[Flow]:
    """Where all images of two versions went: every image of either is in exactly one flow.

    For each cluster of the previous version, and for its noise, ``share_from`` adds up to 1; for each cluster of this
    version, and for its noise, ``share_to`` does.
    """
    old = old or {}
    counts: Counter[tuple[str, int | None, str, int | None]] = Counter()
    for image_id in old.keys() | labels.keys():
        if image_id not in old:
            source: tuple[str, int | None] = ("absent", None)
        else:
            source = ("noise", None) if (cluster := old[image_id]) is None else ("cluster", cluster)
        if image_id not in labels:
            target: tuple[str, int | None] = ("absent", None)
        else:
            target = ("noise", None) if (label := labels[image_id]) < 0 else ("cluster", ids[label])
        counts[(*source, *target)] += 1
    left: Counter[tuple[str, int | None]] = Counter()
    arrived: Counter[tuple[str, int | None]] = Counter()
    for (from_kind, from_id, to_kind, to_id), n in counts.items():
        left[from_kind, from_id] += n
        arrived[to_kind, to_id] += n
    return [
        Flow(
            from_kind,
            from_id,
            to_kind,
            to_id,
            n,
            None if from_kind == "absent" else n / left[from_kind, from_id],
            None if to_kind == "absent" else n / arrived[to_kind, to_id],
        )
        for (from_kind, from_id, to_kind, to_id), n in sorted(
            counts.items(), key=lambda x: (x[0][0], x[0][1] or 0, x[0][2], x[0][3] or 0)
        )
    ]

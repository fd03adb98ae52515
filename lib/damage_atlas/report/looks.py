"""Looks at an asset: what an inspection saw, each place or moment of it once.

**The same place**: a look says its place when it has a ``position_m``, or an ``element`` with a clock position or a
tile box. Two looks at an asset are of one place when element and tile box are equal (also when both are unknown), their
positions differ by at most ``report.same_place_m``, and their clock positions by at most ``report.same_place_clock``
hours around the clock. A tile box alone says no place: a drone never hovers twice at one point. Nor do coordinates:
they say where the camera was, metres off, and not where it looked.

**The same moment**: of one inspection, all looks at one place count once, with the cluster that most of them have, the
graver of equals. Looks without a place count once as well where they fell into one cluster, and are pictures of one
second (a burst) or frames of one video within ten (a crawler that stands still). A day without a time of day says
nothing here. Tiles of a photo are looks of their own.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from damage_atlas.times import MOMENT_S, has_time_of_day

_BURST: Final = timedelta(seconds=1)
_CLOCK_HOURS: Final = 12.0
_LONG_AGO: Final = datetime.min

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Look:
    """One look at an asset in one inspection.

    Attributes:
        cluster_id: None is noise.
        severity: grade of the kind of damage it shows.
        photo: what was taken at once: a file, or a frame; its tiles are no independent looks.
        film: the video that it is a frame of, ``film_time_s`` seconds from its start.
        new: whether the previous version did not hold it.
        count: how many observations it stands for.
    """

    observation_id: str
    asset_id: str
    inspection: str
    cluster_id: int | None
    label: str | None
    severity: float
    new: bool = False
    delivery: str | None = None
    element: str | None = None
    position_m: float | None = None
    clock: float | None = None
    tile: Box | None = None
    captured_at: datetime | None = None
    photo: str = ""
    film: tuple[str | None, str] | None = None
    film_time_s: float = 0.0
    count: int = 1

    @property
    def has_place(self) -> bool:
        """Whether it can be told if another look is of the same place."""
        if self.position_m is not None:
            return True
        return self.element is not None and (self.clock is not None or self.tile is not None)

    @property
    def kind(self) -> tuple[int | None, str | None]:
        """What counts as one kind of damage: a cluster; outside of all, a label."""
        return (self.cluster_id, None if self.cluster_id is not None else self.label)


@dataclass(frozen=True)
class SamePlace:
    """How near is the same place."""

    metres: float = 0.5
    clock_hours: float = 1.0

    def distance(self, a: Look, b: Look) -> float | None:
        """0 (the same) to 2 (just within both tolerances); None where the places differ."""
        if (a.element, a.tile) != (b.element, b.tile):
            return None
        apart = 0.0
        for first, second, limit, around in (
            (a.position_m, b.position_m, self.metres, None),
            (a.clock, b.clock, self.clock_hours, _CLOCK_HOURS),
        ):
            if (first is None) != (second is None):
                return None
            if first is not None and second is not None:
                gap = abs(first - second)
                if around is not None:
                    gap = min(gap % around, -gap % around)
                if gap > limit:
                    return None
                apart += gap / limit if limit else 0.0
        return apart


def photo_weights(looks: Sequence[Look]) -> dict[str, float]:
    """Observation -> its share of the photo it was cut from: each photo counts once, however many tiles it gave."""
    tiles = Counter(_photo(look) for look in looks)
    return {look.observation_id: 1 / tiles[_photo(look)] for look in looks}


def grave_photos(looks: Sequence[Look], grade: float) -> tuple[int, int]:
    """How many photos show something of at least ``grade``, and how many there are."""
    return len({_photo(x) for x in looks if x.severity >= grade}), len({_photo(x) for x in looks})


def _photo(look: Look) -> str:
    return look.photo or look.observation_id


def inspection_of(row: Mapping[str, Any]) -> str:
    """The inspection that a row of observations.parquet belongs to: as it says, else its delivery, else its day."""
    named: str | None = row["inspection_id"] or row["delivery"]
    if named is not None:
        return named
    moment: datetime | None = row["captured_at"]
    return moment.strftime("%Y-%m-%d") if moment is not None else "undated"


def by_inspection(looks: Iterable[Look]) -> dict[str, list[Look]]:
    """The looks at one asset by inspection, in the order of time: of deliveries, then of photographs, then of names."""
    found: dict[str, list[Look]] = defaultdict(list)
    for look in looks:
        found[look.inspection].append(look)

    def when(inspection: str) -> tuple[str, datetime, str]:
        inside = found[inspection]
        times = [look.captured_at.replace(tzinfo=None) for look in inside if look.captured_at is not None]
        return (min(look.delivery or "" for look in inside), min(times, default=_LONG_AGO), inspection)

    return {inspection: found[inspection] for inspection in sorted(found, key=when)}


def once_each(looks: Sequence[Look], same: SamePlace) -> list[Look]:
    """The looks of one asset in one inspection, each place and each moment once."""
    placed = sorted((x for x in looks if x.has_place), key=lambda x: (*_shelf(x), *_along(x)))
    rest = sorted(
        (x for x in looks if not x.has_place),
        key=lambda x: (*_shelf(x), repr(x.kind), repr(x.film), x.film_time_s, _moment(x), x.observation_id),
    )

    def passed(first: Look, look: Look) -> bool:
        return _shelf(first) != _shelf(look) or _along(look)[0] > _along(first)[0] + same.metres

    groups = _grouped(placed, lambda a, b: same.distance(a, b) is not None, passed)
    groups += _grouped(rest, _one_moment, lambda a, b: not _one_moment(a, b))
    return [_speaker(group) for group in groups]


def pair_places(
    earlier: Sequence[Look], later: Sequence[Look], same: SamePlace
) -> tuple[list[tuple[Look, Look]], list[Look], list[Look]]:
    """Pairs of the same place, nearest first, each look once; then the looks of either side whose place found no pair.

    Both sides hold each place once.
    """
    shelves: dict[tuple[Any, ...], list[Look]] = defaultdict(list)
    for look in later:
        if look.has_place:
            shelves[look.element, look.tile].append(look)
    for shelf in shelves.values():
        shelf.sort(key=_along)
    near = []
    for a in (look for look in earlier if look.has_place):
        shelf = shelves.get((a.element, a.tile), [])
        low, high = 0, len(shelf)
        if a.position_m is not None:
            low = bisect.bisect_left(shelf, a.position_m - same.metres, key=lambda x: _along(x)[0])
            high = bisect.bisect_right(shelf, a.position_m + same.metres, key=lambda x: _along(x)[0])
        for b in shelf[low:high]:
            apart = same.distance(a, b)
            if apart is not None:
                near.append((apart, a.observation_id, b.observation_id, a, b))
    taken: set[str] = set()
    pairs = []
    for _, first, second, a, b in sorted(near, key=lambda row: row[:3]):
        # An image that lies in two inspections would pair with itself under one id.
        if f"a{first}" not in taken and f"b{second}" not in taken:
            taken |= {f"a{first}", f"b{second}"}
            pairs.append((a, b))
    pairs.sort(key=lambda pair: (_along(pair[1]), pair[1].observation_id))
    lost = [x for x in earlier if x.has_place and f"a{x.observation_id}" not in taken]
    fresh = [x for x in later if x.has_place and f"b{x.observation_id}" not in taken]
    return pairs, lost, fresh


def _grouped(
    looks: Sequence[Look], together: Callable[[Look, Look], bool], behind: Callable[[Look, Look], bool]
) -> list[list[Look]]:
    """Groups whose members all belong together with their first.

    Args:
        behind: whether a group that begins with the first look is out of reach of the second and of all after it.
    """
    groups: list[list[Look]] = []
    within_reach: list[list[Look]] = []
    for look in looks:
        within_reach = [group for group in within_reach if not behind(group[0], look)]
        home = next((group for group in within_reach if together(group[0], look)), None)
        if home is None:
            home = []
            groups.append(home)
            within_reach.append(home)
        home.append(look)
    return groups


def _one_moment(first: Look, look: Look) -> bool:
    if (*_shelf(first), first.kind, first.film) != (*_shelf(look), look.kind, look.film):
        return False
    if look.film is not None:
        return look.film_time_s - first.film_time_s < MOMENT_S
    if not has_time_of_day(first.captured_at) or not has_time_of_day(look.captured_at):
        return False
    return abs(look.captured_at - first.captured_at) <= _BURST


def _speaker(group: Sequence[Look]) -> Look:
    if len(group) == 1:
        return group[0]
    votes = Counter(look.kind for look in group)
    best = min(group, key=lambda x: (-votes[x.kind], -x.severity, _moment(x), x.observation_id))
    return replace(best, count=len(group), new=any(look.new for look in group))


def _along(look: Look) -> tuple[float, float, str]:
    position = look.position_m if look.position_m is not None else float("-inf")
    return (position, look.clock if look.clock is not None else -1.0, look.observation_id)


def _moment(look: Look) -> datetime:
    return look.captured_at.replace(tzinfo=None) if look.captured_at is not None else _LONG_AGO


def _shelf(look: Look) -> tuple[str, str]:
    return (repr(look.element), repr(look.tile))

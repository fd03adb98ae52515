"""How the looks at an asset move between clusters from one inspection to the next.

Two ways to tell, in the column ``matched_by``:

* ``place``: looks of the same place (``report.looks`` says what that is) are compared one by one.
* ``share``: looks that say no place can only be compared as a whole: which share of the asset's looks lies in which
  cluster, tiles compared with tiles and whole images with whole images. As much as can have stayed is taken to have
  stayed; what one cluster lost is spread over those that gained, in proportion. Such a shift is called a progression
  only where chance would hardly make it (Fisher's exact test, one side, on how many photos show something at least that
  grave); else it is ``unclear``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from damage_atlas.contracts import TRANSITIONS
from damage_atlas.report.looks import Look, SamePlace, by_inspection, grave_photos, once_each, pair_places

# What a reader wants to see first.
KINDS: Final = ("progression", "unclear", "moved", "improvement", "steady")
_CHANCE: Final = 0.01  # many assets are compared at once
_GRADE_STEP: Final = 0.5  # less than half a grade is no difference
_LEAST_LOOKS: Final = 0.5  # an estimate below half a look says nothing

Kind = tuple[int | None, str | None, float]  # cluster, label outside of all clusters, grade
Row = dict[str, Any]


@dataclass(frozen=True)
class Course:
    """An asset through its inspections.

    Attributes:
        inspections: inspection -> its looks, each place and moment once; in the order of time.
        state: the newest look at each place, and the newest inspection's looks that say no place.
        worse: looks of the newest inspection that are graver than before: observation_id -> 1 where the place was
            compared, else the share of its kind that has come over from milder ones.
        seen_again: of the places that were known before the newest inspection, how many it saw.
        places_before: how many were known before.
        rows: of transitions.parquet.
    """

    asset_id: str
    inspections: Mapping[str, Sequence[Look]]
    state: Sequence[Look]
    worse: Mapping[str, float]
    seen_again: int
    places_before: int
    rows: Sequence[Row]

    @property
    def coverage(self) -> float | None:
        """Share of the places known before that the newest inspection saw again; None where no place was known."""
        return self.seen_again / self.places_before if self.places_before else None


def follow(looks: Sequence[Look], same: SamePlace) -> list[Course]:
    """The course of every asset, in the order of their names.

    Args:
        looks: every observation that has an asset.
    """
    by_asset: dict[str, list[Look]] = defaultdict(list)
    for look in looks:
        by_asset[look.asset_id].append(look)
    return [_course(asset_id, by_asset[asset_id], same) for asset_id in sorted(by_asset)]


def _course(asset_id: str, looks: Sequence[Look], same: SamePlace) -> Course:
    inspections = {name: once_each(inside, same) for name, inside in by_inspection(looks).items()}
    known: list[Look] = []  # the newest look at each place so far
    rows: list[Row] = []
    worse: dict[str, float] = {}
    seen_again = places_before = 0
    before: str | None = None
    for name, inside in inspections.items():
        pairs, unseen, _ = pair_places(known, inside, same)
        seen_again, places_before = len(pairs), len(known)
        worse = {b.observation_id: 1.0 for a, b in pairs if _step(a, b) > 0}
        if before is not None:
            rows += _by_place(pairs, name)
            rows += _by_share(inspections[before], inside, before, name, worse)
        known = [*unseen, *(look for look in inside if look.has_place)]
        before = name
    newest = inspections[before] if before is not None else []
    state = [*known, *(look for look in newest if not look.has_place)]
    for row in rows:
        row["newest"] = row["to_inspection"] == before
    return Course(asset_id, inspections, state, worse, seen_again, places_before, sorted(rows, key=_order))


def all_rows(courses: Sequence[Course]) -> list[Row]:
    """Rows of transitions.parquet: progressions first, on top those of now, then the steepest and most frequent."""
    return sorted((row for course in courses for row in course.rows), key=_order)


def transitions_table(rows: Sequence[Row]) -> pa.Table:
    """The rows as ``transitions.parquet``; may be empty."""
    return pa.Table.from_pylist(list(rows), schema=TRANSITIONS)


def _by_place(pairs: Sequence[tuple[Look, Look]], to_inspection: str) -> list[Row]:
    """One row for each way that places went; a place that was passed over is compared with its look before that."""
    ways: dict[tuple[str, Kind, Kind], list[tuple[Look, Look]]] = defaultdict(list)
    for a, b in pairs:
        ways[a.inspection, _kind(a), _kind(b)].append((a, b))
    compared = Counter(a.inspection for a, _ in pairs)
    rows = []
    for (from_inspection, first, second), inside in ways.items():
        a, b = inside[0]
        rows.append(
            _row(b.asset_id, from_inspection, to_inspection, "place", first, second)
            | {
                "kind": _word(first, second, sure=True),
                "looks": float(len(inside)),
                "of_looks": compared[from_inspection],
                "positions_m": [look.position_m for _, look in inside if look.position_m is not None],
                "from_observation_id": a.observation_id,
                "to_observation_id": b.observation_id,
            }
        )
    return rows


def _by_share(
    earlier: Sequence[Look], later: Sequence[Look], from_inspection: str, to_inspection: str, worse: dict[str, float]
) -> list[Row]:
    """Shifts of shares among the looks that say no place, for each element, and tiles by themselves; adds to ``worse``.

    An overview photo gives some hundred tiles of mostly sound surface: beside close-ups they would be a shift.
    """
    rows: list[Row] = []
    sides: list[dict[tuple[str | None, bool], list[Look]]] = [{}, {}]
    for side, looks in zip(sides, (earlier, later), strict=True):
        for look in looks:
            if not look.has_place:
                side.setdefault((look.element, look.tile is None), []).append(look)
    for group in sorted(sides[0].keys() & sides[1].keys(), key=repr):
        old, new = sides[0][group], sides[1][group]
        first_of = {_kind(look): look for look in reversed(old)}
        here: dict[Kind, list[Look]] = defaultdict(list)
        for look in new:
            here[_kind(look)].append(look)
        chances: dict[tuple[float, bool], float] = {}
        for first, second, n in _fewest_moves(old, new):
            if first != second and n < _LEAST_LOOKS:
                continue
            step = second[2] - first[2]
            chance = None
            if abs(step) >= _GRADE_STEP:
                what = (max(first[2], second[2]), step > 0)
                if what not in chances:
                    chances[what] = _chance(old, new, *what)
                chance = chances[what]
            there = here[second]
            rows.append(
                _row(there[0].asset_id, from_inspection, to_inspection, "share", first, second)
                | {
                    "kind": _word(first, second, sure=chance is not None and chance < _CHANCE),
                    "looks": n,
                    "of_looks": len(new),
                    "chance": chance,
                    "positions_m": [],
                    "from_observation_id": first_of[first].observation_id,
                    "to_observation_id": there[0].observation_id,
                }
            )
            if rows[-1]["kind"] == "progression":
                for look in there:
                    worse[look.observation_id] = worse.get(look.observation_id, 0.0) + n / len(there)
    return rows


def _fewest_moves(old: Sequence[Look], new: Sequence[Look]) -> list[tuple[Kind, Kind, float]]:
    """How many of the new looks came from where, if as few as possible moved; they add up to ``len(new)``."""
    before, after = Counter(map(_kind, old)), Counter(map(_kind, new))
    share = {kind: (before[kind] / len(old), after[kind] / len(new)) for kind in before | after}
    moves = [(kind, kind, min(pair) * len(new)) for kind, pair in share.items() if min(pair) > 0]
    lost = {kind: a - b for kind, (a, b) in share.items() if a > b}
    won = {kind: b - a for kind, (a, b) in share.items() if b > a}
    total = sum(lost.values())
    moves += [(i, j, x * y / total * len(new)) for i, x in lost.items() for j, y in won.items()]
    return sorted(moves, key=repr)


def _chance(old: Sequence[Look], new: Sequence[Look], grade: float, more: bool) -> float:
    """How likely chance alone makes as many (or as few) of the new photos show something of at least ``grade``."""
    from scipy.stats import fisher_exact  # takes longer to import than all else of the report together

    table = [[n, of - n] for n, of in (grave_photos(looks, grade) for looks in (new, old))]
    return float(fisher_exact(table, alternative="greater" if more else "less").pvalue)


def _kind(look: Look) -> Kind:
    return (*look.kind, look.severity)


def _step(a: Look, b: Look) -> float:
    step = b.severity - a.severity
    return step if step >= _GRADE_STEP else 0.0


def _word(first: Kind, second: Kind, sure: bool) -> str:
    step = second[2] - first[2]
    if abs(step) < _GRADE_STEP:
        return "steady" if first == second else "moved"
    if not sure:
        return "unclear"
    return "progression" if step > 0 else "improvement"


def _row(asset_id: str, from_inspection: str, to_inspection: str, matched_by: str, first: Kind, second: Kind) -> Row:
    return {
        "asset_id": asset_id,
        "from_inspection": from_inspection,
        "to_inspection": to_inspection,
        "matched_by": matched_by,
        "from_cluster_id": first[0],
        "to_cluster_id": second[0],
        "from_severity": first[2],
        "to_severity": second[2],
        "chance": None,
    }


def _order(row: Row) -> tuple[Any, ...]:
    return (
        KINDS.index(row["kind"]),
        not row["newest"],
        -(row["to_severity"] - row["from_severity"]),
        -row["to_severity"],
        -row["looks"],
        row["asset_id"],
        row["to_inspection"],
        repr((row["from_cluster_id"], row["to_cluster_id"])),
    )

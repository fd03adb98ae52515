"""Which assets to visit first. It sorts what people look at; it is no judgement of an asset's condition.

The score is that of the kind of damage (a cluster; outside of all, a label) that counts most on the asset; mild damage
of many kinds does not add up to grave damage:

    score = 100 x severity x extent x n / (n + 1) x (1 + change) x (1 + rarity)

* severity: weight of the kind's grade, 1 for the worst (5), half of that for each grade less (``severity.weight``);
* extent: share of the asset's looks that show this kind, each place and moment once; tiles share their photo's weight;
* n: how many looks these are: what a single look says is believed by half, since mistakes come singly;
* change: share of these looks that are graver than at the inspection before; 1 for a cluster born in this version;
* rarity: 1 for a kind that only one asset shows, 0 for one that all show, logarithmic between.

docs/results.md says how other rules fared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from damage_atlas.contracts import ASSETS, Decision
from damage_atlas.report.looks import Look, photo_weights
from damage_atlas.report.severity import weight
from damage_atlas.report.transitions import Course

SCORE_RULE: Final = (
    "100 × severity (1 for grade 5, half for each grade less) × extent (share of the asset's n looks; tiles share the "
    "weight of their photo) × n / (n + 1) × (1 + share of them that are worse than before) × (1 + rarity among the "
    "assets), of the kind of damage for which this is most"
)
# A decision to leave an asset alone holds until its score has risen by a quarter.
RISEN: Final = 1.25
_REASONS: Final = 3


@dataclass(frozen=True)
class Term:
    """One kind of damage on an asset."""

    cluster_id: int | None
    label: str | None
    grade: float
    looks: int
    worse: float  # looks that are graver than before; an estimate where looks say no place
    born: bool
    assets: int  # that show this kind
    extent: float
    change: float  # 0 to 1
    rarity: float  # 0 to 1

    @property
    def score(self) -> float:
        """What it counts."""
        sure = self.looks / (self.looks + 1)
        return 100 * weight(self.grade) * self.extent * sure * (1 + self.change) * (1 + self.rarity)


def rank_assets(
    courses: Sequence[Course],
    labels: Mapping[int, str | None],
    born: Collection[int] = (),
    decisions: Mapping[str, Decision] | None = None,
    born_in: Mapping[int, int] | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``assets.parquet``, best first; assets that show no damage and have no decision are left out.

    Assets that somebody has deferred, or said to be known, come last until their score has risen by a quarter, or a
    kind of damage that was not known then is found on them.

    Args:
        courses: what is known of each asset.
        labels: cluster -> its most frequent label.
        born: clusters that are new in this version.
        decisions: asset -> the newest decision.
        born_in: cluster -> the version that it was born in.
    """
    decisions, born_in = decisions or {}, born_in or {}
    terms = asset_terms(courses, labels, born)
    newest = max((name for course in courses for name in _deliveries(course)), default=None)
    rows = []
    for course in courses:
        of_asset = terms[course.asset_id]
        decision = decisions.get(course.asset_id)
        if decision is not None and decision.decision == "none":
            decision = None
        if of_asset or decision is not None:
            rows.append(_row(course, of_asset, labels, len(courses), decision, newest, born_in))
    rows.sort(key=lambda row: (row["set_back"], -row["score"], -row["rest"], row["asset_id"]))
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank
        del row["set_back"], row["rest"]
    return rows


def assets_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows as ``assets.parquet``; may be empty."""
    return pa.Table.from_pylist(list(rows), schema=ASSETS)


def asset_terms(
    courses: Sequence[Course], labels: Mapping[int, str | None], born: Collection[int]
) -> dict[str, list[Term]]:
    """The kinds of damage on each asset, what counts most first; arguments as in ``rank_assets``."""
    # By grade as well: an image whose own label is graver than its cluster counts for itself.
    shown: dict[str, dict[tuple[tuple[int | None, str | None], float], list[Look]]] = {}
    on: defaultdict[tuple[int | None, str | None], int] = defaultdict(int)
    for course in courses:
        kinds: dict[tuple[tuple[int | None, str | None], float], list[Look]] = defaultdict(list)
        for look in course.state:
            if look.severity > 0:
                kinds[look.kind, look.severity].append(look)
        shown[course.asset_id] = kinds
        for kind in {kind for kind, _ in kinds}:
            on[kind] += 1
    found = {}
    for course in courses:
        terms = []
        part = photo_weights(course.state)
        whole = sum(part.values())
        for ((cluster, label), grade), looks in shown[course.asset_id].items():
            extent = sum(part[look.observation_id] for look in looks)
            grown = sum(part[x.observation_id] * course.worse.get(x.observation_id, 0.0) for x in looks)
            n_assets = on[cluster, label]
            terms.append(
                Term(
                    cluster_id=cluster,
                    label=label if cluster is None else labels.get(cluster),
                    grade=grade,
                    looks=len(looks),
                    worse=sum(course.worse.get(look.observation_id, 0.0) for look in looks),
                    born=cluster in born,
                    assets=n_assets,
                    extent=extent / whole,
                    change=1.0 if cluster in born else min(grown / extent, 1.0),
                    rarity=math.log(len(courses) / n_assets) / math.log(len(courses)) if len(courses) > 1 else 0.0,
                )
            )
        found[course.asset_id] = sorted(terms, key=lambda t: (-t.score, repr(t.cluster_id), repr(t.label), -t.grade))
    return found


def _row(
    course: Course,
    terms: Sequence[Term],
    labels: Mapping[int, str | None],
    n_assets: int,
    decision: Decision | None,
    newest: str | None,
    born_in: Mapping[int, int],
) -> dict[str, Any]:
    score = round(terms[0].score, 3) if terms else 0.0
    reasons = [_reason(term, len(course.state), n_assets) for term in terms[:_REASONS]]
    if len(terms) > _REASONS:
        more = sum(term.looks for term in terms[_REASONS:])
        reasons.append(f"{more} more in {len(terms) - _REASONS} milder or smaller groups")
    deliveries = _deliveries(course)
    if newest is not None and (not deliveries or deliveries[-1] != newest):
        reasons.append(f"not in the newest delivery; last seen in {inspection_name(_last(course), course.asset_id)}")
    if course.coverage is not None and course.coverage < 1:
        reasons.append(f"{course.seen_again} of {course.places_before} places known before were seen again")
    left_alone = decision is not None and decision.decision in ("defer", "known")
    risen = decision is not None and decision.score is not None and score > RISEN * decision.score
    if decision is not None and left_alone and risen:
        reasons.append(f"was {decision.score:.1f} when it was decided on, {score:.1f} now: listed again")
    newer: list[int] = []
    if decision is not None and left_alone:
        clusters = {term.cluster_id for term in terms if term.cluster_id is not None}
        newer = sorted(cluster for cluster in clusters if born_in.get(cluster, 0) > decision.version)
        if newer:
            named = ", ".join(f"cluster {cluster}" for cluster in newer)
            reasons.append(f"{named} came after it was decided on (version {decision.version}): listed again")
    return {
        "asset_id": course.asset_id,
        "rank": 0,
        "score": score,
        "reasons": reasons,
        "clusters": sorted({term.cluster_id for term in terms if term.cluster_id is not None}),
        "new_observations": sum(look.new for look in course.state),
        "progression": _progression(course, labels),
        "coverage_share": course.coverage,
        "decision": "none" if decision is None else decision.decision,
        "decided_by": None if decision is None else decision.decided_by,
        "decided_at": None if decision is None else decision.decided_at,
        "severity": terms[0].grade if terms else 0.0,
        "extent": terms[0].extent if terms else 0.0,
        "change": terms[0].change if terms else 0.0,
        "rarity": terms[0].rarity if terms else 0.0,
        "looks": len(course.state),
        "last_inspection": _last(course),
        "note": None if decision is None else decision.note or None,
        "set_back": left_alone and not risen and not newer,
        "rest": sum(term.score for term in terms[1:]),
    }


def _deliveries(course: Course) -> list[str]:
    return sorted(
        {look.delivery for looks in course.inspections.values() for look in looks if look.delivery is not None}
    )


def _reason(term: Term, of: int, n_assets: int) -> str:
    kind = term.label or "no label"
    where = f"cluster {term.cluster_id} ({kind}, grade {term.grade:g})"
    if term.cluster_id is None:
        where = f"no cluster, most like {kind} (grade {term.grade:g})" if term.label else "no cluster"
    parts = [f"{term.looks} of {of} in {where}"]
    if term.born:
        parts.append("new in this version")
    elif term.worse > 0:
        parts.append(f"{max(round(term.worse), 1)} worse than before")
    if term.assets <= max(1, n_assets // 4):
        parts.append(f"only {term.assets} of {n_assets} assets show it" if term.assets > 1 else "on no other asset")
    return ", ".join(parts)


def _progression(course: Course, labels: Mapping[int, str | None]) -> str | None:
    """The steepest ways to a worse severity in the newest inspection, in words; None where there is none."""
    rows = [row for row in course.rows if row["kind"] == "progression" and row["newest"]]
    return "; ".join(describe_move(row, labels) for row in rows[:_REASONS]) or None


def _last(course: Course) -> str:
    return list(course.inspections)[-1]


def inspection_name(inspection: str, asset_id: str) -> str:
    """An inspection without the asset's name behind it: where the asset is named already."""
    return inspection.removesuffix(f"/{asset_id}")


def describe_move(row: Mapping[str, Any], labels: Mapping[int, str | None]) -> str:
    """A row of transitions.parquet in words; ``labels``: cluster -> its most frequent label."""

    def side(name: str) -> str:
        cluster = row[f"{name}_cluster_id"]
        known = [f"grade {row[f'{name}_severity']:g}"]
        if cluster is None:
            return f"no cluster ({known[0]})"
        if label := labels.get(cluster):
            known.insert(0, label)
        return f"cluster {cluster} ({', '.join(known)})"

    if row["matched_by"] == "share":
        n = f"about {max(round(row['looks']), 1)} of {row['of_looks']} looks"
    else:
        n = f"{row['looks']:.0f} of {row['of_looks']} places"
    since = inspection_name(row["from_inspection"], row["asset_id"])
    return f"{n} from {side('from')} to {side('to')} since {since}"

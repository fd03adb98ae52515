"""Clusters over time: how many looks of each delivery fall into each cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from damage_atlas.report.looks import Look
from damage_atlas.report.transitions import Course


@dataclass(frozen=True)
class ClusterCourse:
    """A cluster through the periods; None is what lies in no cluster."""

    cluster_id: int | None
    looks: list[int]  # of each period
    shares: list[float]  # of all looks of the period

    @property
    def change(self) -> float:
        """By how much its share of the newest period is larger than that of the one before."""
        return self.shares[-1] - self.shares[-2] if len(self.shares) > 1 else 0.0

    @property
    def steepness(self) -> float:
        """Size of the change, whichever way."""
        return abs(self.change)


@dataclass(frozen=True)
class AssetInspection:
    """What one inspection saw at an asset."""

    inspection: str
    looks: int
    grades: dict[str, int]  # grade -> looks


@dataclass(frozen=True)
class AssetCourse:
    """An asset through its inspections, oldest first."""

    asset_id: str
    inspections: list[AssetInspection]


def period_of(look: Look) -> str:
    """The delivery a look came with, else the month it was taken in."""
    if look.delivery is not None:
        return look.delivery
    return look.captured_at.strftime("%Y-%m") if look.captured_at is not None else "undated"


def clusters_over_time(
    courses: Iterable[Course], others: Iterable[Look], clusters: Sequence[int]
) -> tuple[list[str], list[int], list[ClusterCourse]]:
    """Periods in the order of time, the looks of each, and the course of each cluster and of noise.

    Args:
        courses: assets; each place and moment of an inspection counts once.
        others: looks of no asset: each counts.
    """
    looks = [look for course in courses for inside in course.inspections.values() for look in inside]
    looks += others
    cells = Counter((period_of(look), look.cluster_id) for look in looks)
    totals = Counter(period_of(look) for look in looks)
    periods = sorted(totals)
    found = []
    for cluster in (*clusters, None):
        counts = [cells[period, cluster] for period in periods]
        shares = [n / totals[period] for n, period in zip(counts, periods, strict=True)]
        found.append(ClusterCourse(cluster, counts, shares))
    return periods, [totals[period] for period in periods], found


def asset_courses(courses: Iterable[Course]) -> list[AssetCourse]:
    """What each inspection of each asset saw, by grade."""
    return [
        AssetCourse(
            course.asset_id,
            [
                AssetInspection(
                    inspection, len(looks), {f"{g:g}": n for g, n in sorted(Counter(x.severity for x in looks).items())}
                )
                for inspection, looks in course.inspections.items()
            ],
        )
        for course in courses
    ]

"""Grades of damage, 0 (none) to 5 (worst), of labels and clusters: the archive's code table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from damage_atlas.labels import is_undamaged
from damage_atlas.spec import MAX_GRADE, ReportSpec


@dataclass(frozen=True)
class CodeTable:
    """Label -> grade. Capital letters do not matter.

    An entry ``cluster 16`` grades one cluster, whatever its images are labelled: clusters are finer than labels and
    keep their numbers.

    A label of several (``crack+spalling``) that the table lacks has the worst grade of its parts. What the table lacks
    and whose name says that nothing is wrong is 0; everything else, images without a label too, is ``others``.
    """

    grades: Mapping[str, float] = field(default_factory=dict)
    others: float = 3.0

    @classmethod
    def of(cls, settings: ReportSpec) -> CodeTable:
        """The table of an archive's settings."""
        return cls(
            {label.casefold(): grade for label, grade in settings.severities.items()}, settings.severity_of_others
        )

    def grade(self, label: str | None) -> float:
        """The grade of ``label``."""
        if label is None:
            return self.others
        whole = self.grades.get(label.casefold())
        return max(map(self._part, label.split("+"))) if whole is None else whole

    def _part(self, label: str) -> float:
        known = self.grades.get(label.casefold())
        if known is not None:
            return known
        return 0.0 if is_undamaged(label) else self.others

    def source(self, label: str) -> str:
        """Where the grade comes from: ``table``, ``name`` (it says that nothing is wrong) or ``others``."""
        parts = [label] if label.casefold() in self.grades else label.split("+")
        if all(part.casefold() in self.grades for part in parts):
            return "table"
        return "name" if all(map(is_undamaged, parts)) else "others"

    def of_cluster(self, cluster_id: int) -> float | None:
        """The grade of a cluster that has an entry of its own; None for others."""
        return self.grades.get(f"cluster {cluster_id}")

    def of_remark(self, severity: str | None) -> float | None:
        """The grade that somebody noted of a cluster: an entry of the table, or a number; None for what is neither."""
        if severity is None:
            return None
        known = self.grades.get(severity.casefold())
        if known is not None:
            return known
        with suppress(ValueError):
            return grade if 0 <= (grade := float(severity)) <= MAX_GRADE else None
        return None

    def unused(self, labels: Collection[str], clusters: Collection[int]) -> list[str]:
        """Entries of the table that no label and no cluster of the archive has, perhaps because they are misspelt."""
        there = {name.casefold() for label in labels for name in (label, *label.split("+"))}
        there |= {f"cluster {cluster}" for cluster in clusters}
        return sorted(self.grades.keys() - there)


def grade_of_image(own: float, given: bool, of_cluster: float | None, by_hand: float | None) -> float:
    """The grade that an image counts with.

    Args:
        own: of its label.
        given: whether that came with the image. It may then be worse than what most of its cluster shows; a label that
            is predicted from the image's neighbours says no more than the cluster does.
        of_cluster: of its cluster; None for noise.
        by_hand: that somebody gave the cluster, which goes before all.
    """
    if of_cluster is None:
        return own
    return by_hand if by_hand is not None else max(of_cluster, own if given else 0.0)


def weight(grade: float) -> float:
    """How much a grade counts, 0 to 1: each whole grade twice as much as the one below it, none nothing."""
    return float(2.0 ** (grade - MAX_GRADE)) if grade > 0 else 0.0

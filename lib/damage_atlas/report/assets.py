"""Which assets to look at first: a plain, explainable count, not a judgement of their condition."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from damage_atlas.contracts import ASSETS

SCORE_RULE = "observations in new clusters + share of observations in damage clusters"


@dataclass(frozen=True)
class Sighting:
    """One observation of an asset: the cluster it fell into (None is noise) and whether it is new to the archive."""

    asset_id: str
    cluster_id: int | None
    new: bool


def rank_assets(
    sightings: Sequence[Sighting], born: Collection[int], damage: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Rows of ``assets.parquet``, best first; assets with nothing to show are left out.

    Args:
        sightings: every observation that has an asset.
        born: clusters that are new in this version.
        damage: cluster -> its most frequent label, for those whose label is a kind of damage.
    """
    by_asset: dict[str, list[Sighting]] = defaultdict(list)
    for sighting in sightings:
        by_asset[sighting.asset_id].append(sighting)
    rows: list[dict[str, Any]] = []
    for asset_id, seen in by_asset.items():
        clusters = Counter(s.cluster_id for s in seen if s.cluster_id is not None)
        of_born = {c: n for c, n in clusters.items() if c in born}
        of_damage = {c: n for c, n in clusters.items() if c in damage}
        if not of_born and not of_damage:
            continue
        n_damage = sum(of_damage.values())
        by_label: Counter[str] = Counter()
        for cluster, n in of_damage.items():
            by_label[damage[cluster]] += n
        reasons = [f"{n} of {len(seen)} in new cluster {c}" for c, n in sorted(of_born.items())]
        if of_damage:
            kinds = ", ".join(f"{label} {n}" for label, n in sorted(by_label.items(), key=lambda x: (-x[1], x[0])))
            reasons.append(f"{n_damage} of {len(seen)} in damage clusters ({kinds})")
        rows.append(
            {
                "asset_id": asset_id,
                "rank": 0,
                "score": round(sum(of_born.values()) + n_damage / len(seen), 3),
                "reasons": reasons,
                "clusters": sorted(of_born.keys() | of_damage.keys()),
                "new_observations": sum(s.new for s in seen),
                "progression": None,
                "coverage_share": None,
                "decision": "none",
                "decided_by": None,
                "decided_at": None,
                "n_damage": n_damage,
            }
        )
    rows.sort(key=lambda row: (-row["score"], -row["n_damage"], row["asset_id"]))
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank
        del row["n_damage"]
    return rows


def assets_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows as ``assets.parquet``; may be empty."""
    return pa.Table.from_pylist(list(rows), schema=ASSETS)

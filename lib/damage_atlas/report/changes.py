"""What became of the clusters since the previous version, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

# What a reader wants to see first; kept clusters are no news.
NEWS: Final = ("born", "returned", "unknown", "split", "merged", "grown", "shrunk", "died")
PICTURED: Final = ("born", "returned", "unknown", "split", "merged", "grown")
WORD: Final = {
    "born": "new",
    "returned": "back again",
    "unknown": "not known",
    "split": "split",
    "merged": "merged",
    "grown": "grown",
    "shrunk": "shrunk",
    "kept": "kept",
    "died": "gone",
}

MOVE_WORD: Final = {
    "progression": "worse",
    "unclear": "within chance",
    "moved": "to another cluster as grave",
    "improvement": "milder",
    "steady": "as before",
}
DECISION_WORD: Final = {"visit": "visit", "defer": "deferred", "known": "known"}


@dataclass(frozen=True)
class Change:
    """One cluster that is not what it was."""

    cluster_id: int
    status: str
    sentence: str


def describe_changes(
    clusters: Sequence[Mapping[str, Any]],
    lineage: Sequence[Mapping[str, Any]],
    sizes_before: Mapping[int, int],
    version_before: int,
) -> list[Change]:
    """All changes since ``version_before``, in the order of ``NEWS``, larger clusters first.

    Args:
        clusters: rows of clusters.parquet.
        lineage: rows of lineage.parquet.
        sizes_before: cluster -> size in the previous version.
    """
    now = {row["cluster_id"]: row for row in clusters}
    found = [
        (row["size"], Change(c, row["status"], _sentence(c, row, lineage, sizes_before, version_before)))
        for c, row in now.items()
        if row["status"] in NEWS and row["status"] != "died"
    ]
    died = {row["from_cluster_id"] for row in lineage if row["event"] == "died"}
    died |= {c for c, row in now.items() if row["status"] == "died"}
    for c in died:
        size = sizes_before.get(c, 0)
        found.append((size, Change(c, "died", f"Its {_images(size)} of version {version_before} form no cluster now.")))
    for c in {row["from_cluster_id"] for row in lineage if row["event"] == "unknown"} - {None}:
        size = sizes_before.get(c, 0)
        text = f"Too little is left of its {_images(size)} of version {version_before} to tell what became of it."
        found.append((size, Change(c, "unknown", text)))
    found.sort(key=lambda pair: (NEWS.index(pair[1].status), -pair[0], pair[1].cluster_id))
    return [change for _, change in found]


def tell_history(cluster: int, ledger: Sequence[Mapping[str, Any]]) -> list[str]:
    """What became of a cluster, a sentence for each event, oldest first.

    Args:
        ledger: rows of ledger.parquet.
    """
    told = []
    for row in ledger:
        before, after, event = row["from_cluster_id"], row["to_cluster_id"], row["event"]
        if cluster not in (before, after):
            continue
        if before == after or after == cluster and before is None:
            size = f", {_images(row['size'])}" if row["size"] is not None else ""
            text = f"{WORD[event]}{size}"
        elif event == "split":
            text = f"split off from {before}" if after == cluster else f"{after} split off from it"
        elif event == "merged":
            text = f"took in {before}" if after == cluster else f"went into {after}"
        else:
            text = WORD[event]
        through = ", told by exemplars" if row["evidence"] == "exemplars" else ""
        told.append(f"version {row['version']}: {text}{through}")
    return told


def _sentence(
    cluster: int,
    row: Mapping[str, Any],
    lineage: Sequence[Mapping[str, Any]],
    sizes_before: Mapping[int, int],
    version_before: int,
) -> str:
    sources = [e for e in lineage if e["to_cluster_id"] == cluster and e["from_cluster_id"] is not None]
    sources.sort(key=lambda e: -e["shared_images"])
    match row["status"]:
        case "born":
            text = f"No cluster of version {version_before} holds these images."
            if row["new_share"] is not None:
                text += f" {row['new_share']:.0%} of them were not in the archive before."
            return text
        case "returned":
            share = max((e["share"] for e in sources), default=0.0)
            return (
                f"It was not there in version {version_before}, but earlier: {share:.0%} of the exemplars that were "
                "kept of it lie here. It has its id, name and notes back."
            )
        case "unknown" if any(e["to_cluster_id"] == cluster and e["evidence"] == "images" for e in lineage):
            return f"Half or more of its images lay in clusters of version {version_before}; it is none of them."
        case "unknown":
            return (
                f"Whether it was there in version {version_before} cannot be told: too few images are in both, and the "
                "exemplars of that version's clusters decide nothing."
            )
        case "split":
            if not sources:
                return f"Split off from a cluster of version {version_before}."
            source = sources[0]
            return (
                f"Split off from cluster {source['from_cluster_id']}: {source['share']:.0%} of that cluster's images "
                f"of version {version_before} are here now."
            )
        case "merged":
            named = [f"{e['from_cluster_id']} ({e['share']:.0%} of its images)" for e in sources]
            return f"Brings together clusters {_listed(named)} of version {version_before}."
    before = sizes_before.get(cluster)
    if before is None:
        return f"Has {row['status']} since version {version_before}."
    return f"Had {_images(before)} in version {version_before}, has {row['size']:,} now."


def _images(n: int) -> str:
    return f"{n:,} image" if n == 1 else f"{n:,} images"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "unknown"

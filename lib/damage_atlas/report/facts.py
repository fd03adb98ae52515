"""Everything the report states.

``Facts`` is what the page is rendered from and what ``report.json`` holds: a number that is on the page is in the JSON.
Texts are raw here; the page escapes them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from damage_atlas.contracts import Ledger
from damage_atlas.images import Source
from damage_atlas.report.changes import Change
from damage_atlas.report.time import AssetCourse, ClusterCourse

UNLABELLED = "no label"


@dataclass(frozen=True)
class Count:
    """How many images go by a name."""

    name: str
    images: int


@dataclass(frozen=True)
class Shown:
    """One picture of a cluster's row: rank 0 is its medoid, 1 to 9 the nearest to it."""

    rank: int
    observation_id: str
    file: str
    label: str | None
    similarity: float  # cosine to the medoid
    picture_key: str  # relative to the run folder
    heatmap_key: str


@dataclass(frozen=True)
class Cluster:
    """One cluster of this version."""

    cluster_id: int
    status: str
    size: int
    share: float  # of all images
    top_label: str | None
    purity: float | None
    confidence: float | None
    novelty: float | None
    new_share: float | None
    first_version: int
    map_artefact: bool
    reappears: float | None  # share of redrawn maps on which it came back
    explained_by: str | None  # what explains it better than the class: asset, photo, …
    labels: list[Count]
    assets: list[Count]
    medoid_file: str | None
    faithfulness: float | None  # mean over the row's heat maps
    row: list[Shown]
    name: str | None  # that people gave it
    severity: str | None  # likewise
    notes: list[str]  # likewise, with who said so and when
    history: list[str]  # a sentence for each event of the ledger


@dataclass(frozen=True)
class Queued:
    """An image of the queue of noise."""

    rank: int
    observation_id: str
    file: str
    unlike: float  # 1 - cosine to its tenth nearest image
    group: int  # 0 for a single image
    group_size: int
    is_new: bool
    cluster_id: int | None
    label: str | None
    asset_id: str | None


@dataclass(frozen=True)
class ClassRow:
    """A predefined class and the clusters it lies in: section 3 of the paper."""

    label: str
    images: int
    main_clusters: list[int]  # clusters in which it is the most frequent class
    clusters: dict[int, int]  # cluster -> images of the class in it
    noise: int


@dataclass(frozen=True)
class Grade:
    """How grave the code table says a label is, or a cluster that it names."""

    label: str
    grade: float  # 0 (none) to 5 (worst)
    source: str  # table; people: noted of a cluster; name: it says that nothing is wrong; others: the table lacks it


@dataclass(frozen=True)
class Quarantined:
    """A file or an image that could not be used."""

    file: str
    reason: str
    meaning: str
    detail: str | None
    stage: str


@dataclass(frozen=True)
class Duplicate:
    """An observation that repeats another one."""

    file: str
    same_as: str | None


@dataclass(frozen=True)
class StageFacts:
    """How one stage went."""

    stage: str
    seconds: float
    attempt: int
    sealed_at: str
    code_version: str
    counts: dict[str, int]
    facts: dict[str, Any]
    artifact_sha256: str


@dataclass(frozen=True)
class Facts:
    """The report, without its pictures."""

    title: str
    archive: str
    version: int  # the one that publishing this run makes, unless another run is faster
    previous_version: int | None
    run_id: str
    delivery: str | None
    computed_at: str
    captured_from: str | None
    captured_to: str | None
    finding: str
    images: int
    noise: int
    noise_share: float
    labels_given: int
    labels_predicted: int
    alerts: list[dict[str, Any]]  # of alerts.json
    alerts_not_compared: str | None
    queue: list[Queued]  # the first of the queue of noise
    queue_length: int
    changes: list[Change]
    clusters: list[Cluster]
    classes: list[ClassRow]
    deliveries: list[Count]
    ledger: Ledger
    quarantined: list[Quarantined]
    duplicates: list[Duplicate]
    assets: list[dict[str, Any]]  # rows of assets.parquet
    asset_rule: str
    grades: list[Grade]  # of the labels of this version
    unused_grades: list[str]  # entries of the code table that no label has
    unassigned_images: int  # without an asset
    periods: list[str]  # deliveries, else months
    looks_of_period: list[int]
    over_time: list[ClusterCourse]  # the last one is noise
    asset_courses: list[AssetCourse]
    transitions: list[dict[str, Any]]  # rows of transitions.parquet, progressions first
    model: str
    model_card: dict[str, Any]
    images_root: str
    settings: dict[str, Any]
    map: dict[str, Any]  # facts of the cluster stage
    recall: dict[str, Any]
    stages: list[StageFacts]

    def document(self) -> dict[str, Any]:
        """As JSON: the content of ``report.json``."""
        document = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = json.loads(json.dumps(document, default=_plain))
        return {"schema_version": 1, **_finite(plain)}


@dataclass(frozen=True)
class Point:
    """One point of the map, with what hovering over it tells and where its picture is."""

    observation_id: str
    x: float
    y: float
    cluster_id: int | None
    label: str | None
    given: bool  # the label came with the image; otherwise it is predicted
    confidence: float
    novelty: float
    asset_id: str | None
    delivery: str | None
    source: Source
    time_s: float | None = None  # of a video's frame
    position_m: float | None = None  # along a sewer or a track

    @property
    def place(self) -> str:
        """Its file, and where in it."""
        return place(self.source, self.time_s, self.position_m)


def place(source: Source, time_s: float | None = None, position_m: float | None = None) -> str:
    """A file, with the tile's place or the second of the video where it is one, and the position where it is known."""
    parts = [] if source.tile is None else [f"tile at {source.tile.x}, {source.tile.y}"]
    if time_s is not None:
        minutes, seconds = divmod(time_s, 60)
        parts.append(f"at {minutes:.0f}:{seconds:06.3f}".rstrip("0").rstrip("."))
    if position_m is not None:
        parts.append(f"{position_m:g} m")
    return f"{source.file} ({', '.join(parts)})" if parts else source.file


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Ledger):
        return value.model_dump()
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"report.json cannot hold {type(value).__name__}")


def _finite(value: Any) -> Any:
    """NaN and infinity as null: JSON has no word for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value

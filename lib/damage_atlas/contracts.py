"""What the stages hand to each other: stage names, tables, the ledger, and the artifact that seals a stage.

Importing this module loads neither torch nor faiss, so that an Airflow DAG may use it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from damage_atlas.decoding.faults import QUARANTINE_REASONS as QUARANTINE_REASONS
from damage_atlas.errors import ContractError

SCHEMA_VERSION: Final = 1

STAGES: Final = ("catalog", "train", "embed", "index", "cluster", "explain", "report", "publish")
RunKind = Literal["train", "recluster", "run"]
STAGES_OF_KIND: Final[dict[str, tuple[str, ...]]] = {
    "train": ("catalog", "train"),
    "recluster": tuple(stage for stage in STAGES if stage != "train"),
    "run": STAGES,
}

OBSERVATIONS: Final = pa.schema(
    [
        pa.field("observation_id", pa.string(), nullable=False),  # stable: names the place in the archive
        pa.field("image_id", pa.string()),  # names the pixels; null where the file could not be read
        pa.field("uri", pa.string(), nullable=False),
        pa.field("tile_x", pa.int32()),  # pixels of the upright photo; null when the whole image
        pa.field("tile_y", pa.int32()),
        pa.field("tile_width", pa.int32()),
        pa.field("tile_height", pa.int32()),
        pa.field("frame_time_s", pa.float64()),
        pa.field("size_bytes", pa.int64()),
        pa.field("width", pa.int32()),  # of the whole upright photo, pixels
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("group", pa.string()),
        pa.field("asset_id", pa.string()),
        pa.field("inspection_id", pa.string()),
        pa.field("element", pa.string()),
        pa.field("position_m", pa.float64()),
        pa.field("clock", pa.float64()),
        pa.field("captured_at", pa.timestamp("us", tz="UTC")),
        pa.field("latitude", pa.float64()),
        pa.field("longitude", pa.float64()),
        pa.field("split", pa.string()),  # train, test, or null where there is no label
        pa.field("status", pa.string(), nullable=False),  # ok, duplicate, quarantined
        pa.field("reason", pa.string()),
        # beyond the contract
        pa.field("file", pa.string(), nullable=False),  # relative to the image folder
        pa.field("delivery", pa.string()),
        pa.field("sha256", pa.string()),  # of the file's bytes
        pa.field("detail", pa.string()),  # for people: what exactly was wrong
        pa.field("container", pa.string()),  # the tar file that the file is a member of
        pa.field("byte_start", pa.int64()),  # where the member's bytes begin in it
        pa.field("frame", pa.int64()),  # of a video: presentation timestamp, in its stream's units
    ]
)

# What is known of a file, whatever run asks: kept between runs, so that only new and changed files are read.
FILES: Final = pa.schema(
    [
        pa.field("listed", pa.string(), nullable=False),  # the file that was listed: a picture, a tar file, a video
        pa.field("fingerprint", pa.string(), nullable=False),  # its size and stamp then
        *[OBSERVATIONS.field(name) for name in ("file", "container", "byte_start", "size_bytes", "sha256", "frame")],
        *[OBSERVATIONS.field(name) for name in ("frame_time_s", "format", "width", "height", "captured_at")],
        *[OBSERVATIONS.field(name) for name in ("latitude", "longitude")],
        pa.field("labels", pa.list_(pa.string())),  # from here on: what is said beside the picture; null: nothing
        *[OBSERVATIONS.field(n) for n in ("group", "asset_id", "inspection_id", "element", "position_m", "clock")],
        *[OBSERVATIONS.field(name) for name in ("reason", "detail")],
    ]
)


def vectors_schema(embedding_size: int) -> pa.Schema:
    """Schema of a part of vectors: ``image_id`` and a unit-length vector of ``embedding_size`` float32."""
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), embedding_size), nullable=False),
        ]
    )


FAILED: Final = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)

IDS: Final = pa.schema([pa.field("image_id", pa.string(), nullable=False)])

POINTS: Final = pa.schema(
    [
        pa.field("observation_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("x", pa.float32(), nullable=False),
        pa.field("y", pa.float32(), nullable=False),
        pa.field("cluster_id", pa.int64()),  # null for noise
        pa.field("role", pa.string(), nullable=False),  # core, border, noise
        pa.field("confidence", pa.float32(), nullable=False),  # share of its nearest neighbours in its cluster
        pa.field("novelty", pa.float32(), nullable=False),  # 1 - cosine to the nearest training image, 0 to 2
        # beyond the contract
        pa.field("label", pa.string()),  # given, else predicted from the nearest training images
        pa.field("label_source", pa.string()),  # given, predicted
        pa.field("asset_id", pa.string()),
        pa.field("delivery", pa.string()),
        pa.field("landmark", pa.bool_()),  # false: not on the map itself, but placed by its nearest landmarks
    ]
)

CLUSTERS: Final = pa.schema(
    [
        pa.field("cluster_id", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("medoid_image_id", pa.string()),
        pa.field("purity", pa.float32()),  # share of the most frequent label; null without labels
        pa.field("top_label", pa.string()),
        pa.field("label_counts", pa.map_(pa.string(), pa.int64())),
        pa.field("confidence", pa.float32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("map_artefact", pa.bool_(), nullable=False),
        pa.field("first_version", pa.int64(), nullable=False),
        # beyond the contract
        pa.field("new_share", pa.float32()),  # share of its images that the previous version did not hold
        pa.field("novelty", pa.float32()),  # mean over its points
        pa.field("reappears", pa.float32()),  # share of resamples in which it came back; null where none holds it
        pa.field("cohesion", pa.float32()),  # how far its points are each other's neighbours in the embedding
        pa.field("explained_by", pa.string()),  # what explains it better than the class: asset, photo, …
    ]
)

LINEAGE: Final = pa.schema(
    [
        pa.field("from_cluster_id", pa.int64()),
        pa.field("to_cluster_id", pa.int64()),
        pa.field("event", pa.string(), nullable=False),
        pa.field("shared_images", pa.int64(), nullable=False),
        pa.field("share", pa.float32(), nullable=False),  # of the images of from_cluster_id that still exist
        # beyond the contract
        pa.field("evidence", pa.string(), nullable=False),  # images, exemplars, none
    ]
)

# The lineage of all versions one after the other: whoever filters it by an id reads the history of a cluster.
CLUSTER_LEDGER: Final = pa.schema(
    [
        pa.field("version", pa.int64(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("delivery", pa.string()),
        *LINEAGE,
        pa.field("size", pa.int64()),  # observations of to_cluster_id; null where there is none
    ]
)

FLOWS: Final = pa.schema(
    [
        pa.field("from_kind", pa.string(), nullable=False),  # cluster, noise, absent
        pa.field("from_cluster_id", pa.int64()),
        pa.field("to_kind", pa.string(), nullable=False),
        pa.field("to_cluster_id", pa.int64()),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("share_from", pa.float64()),  # of the images there before; null from absent
        pa.field("share_to", pa.float64()),  # of the images there now; null to absent
    ]
)

EXEMPLARS: Final = pa.schema(
    [
        pa.field("cluster_id", pa.int64(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),  # NAME@VERSION that made the vector
        pa.field("vector", pa.list_(pa.float32()), nullable=False),
    ]
)

NEIGHBOURS: Final = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("near", pa.list_(pa.int32()), nullable=False),
        pa.field("farthest", pa.float32(), nullable=False),
    ]
)

NOISE: Final = pa.schema(
    [
        pa.field("rank", pa.int32(), nullable=False),  # 1 is first
        pa.field("observation_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("unlike", pa.float32(), nullable=False),  # 1 - cosine to the tenth nearest moment
        pa.field("group", pa.int32()),  # images that lie together; null for single ones
        pa.field("group_size", pa.int32(), nullable=False),
        pa.field("is_new", pa.bool_(), nullable=False),  # not in the previous version
        pa.field("cluster_id", pa.int64()),  # null for noise; else the map has drawn it into that cluster
        pa.field("novelty", pa.float32(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("asset_id", pa.string()),
        pa.field("delivery", pa.string()),
    ]
)

EXPLANATIONS: Final = pa.schema(
    [
        pa.field("cluster_id", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),  # 0 = sample, 1 to 9 = nearest
        pa.field("observation_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),  # cosine to the sample
        pa.field("picture_key", pa.string(), nullable=False),  # relative to the run folder
        pa.field("heatmap_key", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("faithfulness", pa.float32()),  # see explain.gradcam.deletion_scores
    ]
)

# How the looks at an asset moved between clusters from one inspection to the next; see report.transitions.
TRANSITIONS: Final = pa.schema(
    [
        pa.field("asset_id", pa.string(), nullable=False),
        pa.field("from_inspection", pa.string(), nullable=False),
        pa.field("to_inspection", pa.string(), nullable=False),
        pa.field("matched_by", pa.string(), nullable=False),  # place, share
        pa.field("from_cluster_id", pa.int64()),  # null for noise
        pa.field("to_cluster_id", pa.int64()),
        pa.field("from_severity", pa.float32(), nullable=False),  # grades of the code table
        pa.field("to_severity", pa.float32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # progression, unclear, moved, improvement, steady
        pa.field("newest", pa.bool_(), nullable=False),  # whether to_inspection is the asset's newest
        pa.field("looks", pa.float32(), nullable=False),  # pairs of the same place; of shares an estimate
        pa.field("of_looks", pa.int64(), nullable=False),  # that were compared
        pa.field("chance", pa.float32()),  # how likely as large a shift of shares is without any change
        pa.field("positions_m", pa.list_(pa.float64()), nullable=False),  # where, in the later inspection
        pa.field("from_observation_id", pa.string()),  # one pair to look at
        pa.field("to_observation_id", pa.string()),
    ]
)

ASSETS: Final = pa.schema(
    [
        pa.field("asset_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("reasons", pa.list_(pa.string()), nullable=False),
        pa.field("clusters", pa.list_(pa.int64()), nullable=False),
        pa.field("new_observations", pa.int64(), nullable=False),
        pa.field("progression", pa.string()),
        pa.field("coverage_share", pa.float32()),
        pa.field("decision", pa.string(), nullable=False),  # visit, defer, known, none
        pa.field("decided_by", pa.string()),
        pa.field("decided_at", pa.timestamp("us", tz="UTC")),
        # beyond the contract
        pa.field("severity", pa.float32(), nullable=False),  # grade of the kind of damage that counts most
        pa.field("extent", pa.float32(), nullable=False),  # share of its looks that show this kind
        pa.field("change", pa.float32(), nullable=False),  # share of these that are worse than before
        pa.field("rarity", pa.float32(), nullable=False),  # of this kind among the assets, 0 to 1
        pa.field("looks", pa.int64(), nullable=False),  # that its present state is taken from
        pa.field("last_inspection", pa.string()),
        pa.field("note", pa.string()),  # of the decision
    ]
)

HISTORY: Final = pa.schema(
    [
        pa.field("iteration", pa.int32(), nullable=False),
        pa.field("images_seen", pa.int64(), nullable=False),
        pa.field("loss", pa.float32()),
        pa.field("positive_cosine", pa.float32()),
        pa.field("negative_cosine", pa.float32()),
        pa.field("knn_accuracy", pa.float32()),  # null between evaluations
        pa.field("seconds", pa.float32(), nullable=False),
    ]
)

CHANGES: Final = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("change", pa.string(), nullable=False),  # vanished or replaced
    ]
)

TABLES: Final[dict[str, pa.Schema]] = {
    "catalog/observations.parquet": OBSERVATIONS,
    "catalog/changes.parquet": CHANGES,
    "embed/failed.parquet": FAILED,
    "index/ids.parquet": IDS,
    "cluster/points.parquet": POINTS,
    "cluster/clusters.parquet": CLUSTERS,
    "cluster/lineage.parquet": LINEAGE,
    "cluster/ledger.parquet": CLUSTER_LEDGER,
    "cluster/flows.parquet": FLOWS,
    "cluster/exemplars.parquet": EXEMPLARS,
    "cluster/neighbours.parquet": NEIGHBOURS,
    "cluster/noise.parquet": NOISE,
    "explain/explanations.parquet": EXPLANATIONS,
    "report/assets.parquet": ASSETS,
    "report/transitions.parquet": TRANSITIONS,
    "train/history.parquet": HISTORY,
}


class Document(BaseModel):
    """A frozen JSON or YAML document; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ledger(Document):
    """Where every observation went: ``listed = embedded + reused + duplicate + quarantined + pending``.

    Counts observations. ``reused`` holds those whose vector was there already: made by an earlier run, or shared
    with another observation of the same pixels in this one.
    """

    listed: int = 0
    embedded: int = 0
    reused: int = 0
    duplicate: int = 0
    quarantined: int = 0
    pending: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)

    def check(self, where: str) -> Ledger:
        """Return self; raise ContractError when the equation or the reasons do not add up."""
        accounted = self.embedded + self.reused + self.duplicate + self.quarantined + self.pending
        if accounted != self.listed or sum(self.reasons.values()) != self.quarantined:
            raise ContractError(
                f"{where}: the ledger does not add up: {self.listed} listed, {accounted} accounted for "
                f"({self.model_dump()}). This is a defect of the software; nothing was sealed."
            )
        return self


class Output(Document):
    """One sealed object of a stage."""

    key: str  # from the store's root
    sha256: str
    size_bytes: int
    rows: int | None = None


class Artifact(Document):
    """``artifact.json``: written last, once; it exists if and only if the stage is complete and checked."""

    stage: str
    schema_version: int = SCHEMA_VERSION
    run_id: str
    attempt: int
    inputs: dict[str, str]  # stage -> SHA-256 of its artifact.json
    outputs: dict[str, Output]  # logical name -> object
    code_version: str
    counts: dict[str, int]  # in, out, failed
    facts: dict[str, Any] = Field(default_factory=dict)
    seconds: float
    sealed_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class VersionRecord(Document):
    """``versions/00000012.json``: makes a run the archive's current version; created once, never changed."""

    version: int
    archive: str
    run_id: str
    run_key: str
    action: Literal["publish", "rollback"] = "publish"
    artifacts: dict[str, str]  # stage -> SHA-256 of its artifact.json
    ledger: Ledger
    clusters: int
    next_cluster_id: int  # ids below it were given once and are never given again, rollbacks included
    published_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


GIVEN: Final = "given"  # network.kind of a model version that is a file of vectors


class ModelCard(Document):
    """``model.json``: what a model version is; written after its weights, so that its presence proves them."""

    model: str
    version: str
    schema_version: int = SCHEMA_VERSION
    network: dict[str, Any]  # arguments of network.build_network
    preprocessing: dict[str, Any]  # arguments of images.preprocess
    classes: list[str]
    parameters: int
    weights: Output
    reference: Output  # vectors and labels of the training images: what predicted labels and novelty refer to
    train_spec: dict[str, Any]
    data_sha256: str  # of the training catalog's observations
    images: dict[str, int]  # split -> number of images
    scores: dict[str, float]
    code_version: str
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def is_given(self) -> bool:
        """Whether somebody else's model made its vectors: a file of them, and no network to ask."""
        return bool(self.network.get("kind") == GIVEN)


REFERENCE: Final = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float32()), nullable=False),
    ]
)


class Tombstone(Document):
    """``forgotten/00000001.json`` of an archive: images that were taken out and that no run brings back."""

    asked_for: str  # what was typed
    files: list[str]  # relative to the image folder, when it was forgotten
    sha256: list[str]  # of whole files: every copy of these bytes
    image_ids: list[str]
    reason: str = ""
    forgotten_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Remark(Document):
    """``remarks/00000001.json`` of an archive: what a person says of a cluster; of each kind the last one counts."""

    cluster_id: int
    name: str | None = None  # empty: no name any more
    note: str | None = None
    severity: str | None = None  # a code of whatever table the archive uses; empty: none any more
    said_by: str
    said_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Remarks(Document):
    """``remarks.json`` of the cluster stage: what had been said of clusters when the run came to it, oldest first."""

    remarks: list[Remark]

    def of(self, cluster_id: int) -> list[Remark]:
        """What was said of one cluster."""
        return [remark for remark in self.remarks if remark.cluster_id == cluster_id]

    def name(self, cluster_id: int) -> str | None:
        """What the cluster is called, if anything."""
        return next((r.name for r in reversed(self.of(cluster_id)) if r.name is not None), None) or None

    def severity(self, cluster_id: int) -> str | None:
        """How severe people call it, if anybody has."""
        return next((r.severity for r in reversed(self.of(cluster_id)) if r.severity is not None), None) or None


class Sighting(Document):
    """One image as the evidence of an alert shows it."""

    observation_id: str
    image_id: str
    uri: str
    similarity: float  # cosine to the alert's medoid
    asset_id: str | None
    delivery: str | None
    element: str | None
    position_m: float | None
    captured_at: datetime | None
    latitude: float | None
    longitude: float | None

    def place(self) -> dict[str, Any]:
        """Where it was seen, as far as that is known."""
        names = ("asset_id", "element", "position_m", "latitude", "longitude")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Alert(Document):
    """Something that a person should look at, with its evidence."""

    kind: Literal["born", "growth", "group", "drift"]
    cluster_id: int | None  # of born and growth
    text: str  # for people, one sentence
    score: float  # -log10 of the chance of so many new images there
    images: int  # new images that it is about
    moments: int  # that they show: tiles of a photo show one, and so do frames of ten seconds
    expected: float  # so many moments would lie there by chance
    growth: float | None  # moments of the cluster / those that are not new, or that it had, whichever are more
    size: int | None  # of the cluster, images
    size_before: int | None  # images in the previous version
    clusters: dict[str, int]  # cluster or noise -> how many of the images lie there
    nearest_label: str | None
    medoid: Sighting
    nearest: list[Sighting]  # the nine nearest to the medoid, whatever version brought them
    image_ids: list[str]  # the first hundred
    assets: dict[str, int]
    places: list[dict[str, Any]]
    captured_from: datetime | None
    captured_to: datetime | None


class Alerts(Document):
    """``alerts.json`` of the cluster stage: what raises a hand in this version; a quiet one's list is empty."""

    schema_version: int = SCHEMA_VERSION
    archive: str
    version: int
    run_id: str
    delivery: str | None
    compared_with: int | None
    not_compared: str | None = None  # why nothing could be said
    new_images: int = 0
    old_images: int = 0
    limits: dict[str, float]
    alerts: list[Alert] = Field(default_factory=list)


class Decision(Document):
    """``decisions/00000001.json`` of an archive: what a person decided about an asset; the newest one counts."""

    asset_id: str
    decision: Literal["visit", "defer", "known", "none"]  # none takes an earlier one back
    decided_by: str = Field(min_length=1)
    version: int  # of the archive, that it was decided on
    score: float | None = None  # of the asset then; one that has risen well above it is listed again
    note: str = ""
    decided_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Promotion(Document):
    """``promotions/00000001.json`` of a model: which version is current from now on."""

    model: str
    version: str
    reason: str
    promoted_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

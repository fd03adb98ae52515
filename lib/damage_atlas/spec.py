"""Settings: typed, frozen, complete. A run is one such document; unknown keys are errors that name the right one."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Final, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from damage_atlas.contracts import STAGES_OF_KIND, Document, RunKind
from damage_atlas.errors import SpecError

D = TypeVar("D", bound=BaseModel)

MODULE_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"  # package.module:Class
MAX_GRADE: Final = 5.0  # the worst severity, as in PACP
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class CatalogSpec(Document):
    """Listing, checking, tiling, splitting."""

    labels: Literal["folder", "none"] = "folder"  # class = first sub-folder; "a+b" carries both labels
    deliveries: Literal["folder", "none"] = "none"  # each sub-folder is a delivery, in the order of names
    groups: str | None = None  # CSV (file, group): what must not straddle a split
    manifest: str | None = None  # CSV or Parquet (file, label, asset_id, …): the files that count, and what they show
    split: Literal["group", "random"] = "group"
    test_share: float = Field(0.3, ge=0, lt=1)  # the paper's 70/30
    seed: int = Field(0, ge=0, lt=2**31)
    tile_size: int = Field(256, ge=32)  # pixels, full resolution
    tile_overlap: int = Field(32, ge=0)
    tile_above: int = Field(1024, ge=32)  # photos with a longer side than this are cut
    min_side: int = Field(8, ge=1)  # pixels; smaller pictures are quarantined
    max_pixels: int = Field(300_000_000, ge=1)  # more is a decompression bomb
    decode_limit_s: float = Field(60.0, gt=0)  # for one picture, and for each frame of a video
    video_every_s: float = Field(1.0, gt=0)  # from one frame that is looked at to the next
    # Null, or how much a frame must differ from the last one taken (mean grey value, 0 to 1).
    video_scene_change: float | None = Field(None, gt=0, lt=1)
    files_per_part: int = Field(1024, ge=1)  # checked and kept together
    in_job_up_to_mib: int = Field(256, ge=0)  # of files that a Ray job checks itself: done before workers have started
    retry_quarantined: bool = False  # look again at files that could not be used; else only when they change
    max_quarantined_share: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _tiles_advance(self) -> CatalogSpec:
        if self.tile_overlap >= self.tile_size:
            raise ValueError("tile_overlap must be smaller than tile_size")
        return self


class TrainSpec(Document):
    """MN-pair metric learning; defaults are the paper's (section 3.1) unless a comment says otherwise."""

    # Equation (5) mended, or as printed (literal); the rest are its relatives: see `MNPairLoss`.
    loss: Literal["mn_pair", "n_pair", "supcon", "mean_of_logs", "literal"] = "mn_pair"
    temperature: float = Field(0.3, gt=0)  # tau: divides cosine similarities
    positive_weight: float = Field(0.15, gt=0, lt=1)  # nu; n_pair and supcon have none
    # The paper's M and N, the anchor included; null: the number of classes (and M = 2 in tuples of n_pair).
    m: int | None = Field(None, ge=2)
    n: int | None = Field(None, ge=2)
    hard_negatives: float = Field(0.0, ge=0)  # beta of Robinson et al. 2021: how much more near negatives weigh
    # Images that share some of their labels are positives of that weight (Jaccard); else a mix is a class of its own.
    multi_label: bool = False
    sampler: Literal["balanced", "tuples"] = "balanced"  # tuples: the paper's; balanced needs fewer forward passes
    hard_classes: bool = False  # tuples take their negatives from the nearest classes; else they draw them
    instance_weight: float = Field(0.0, ge=0)  # NT-Xent between two views of an image: keeps finer forms apart
    instance_images: int = Field(64, ge=1)  # how many of a batch are shown a second time for it
    mixup: float = Field(0.0, ge=0)  # weight of the loss of mixed pairs, Venkataramanan et al. 2022
    mixup_alpha: float = Field(2.0, gt=0)  # of Beta(alpha, alpha), how much of a mix is the positive
    iterations: int = Field(2000, ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(1e-4, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"  # cosine, not the paper's: the rate falls to 0 at the end
    gradient_decay: float = Field(0.9, ge=0, lt=1)
    squared_gradient_decay: float = Field(0.99, ge=0, lt=1)
    # Random erasing with the defaults of Zhong et al. 2017: p, s_l to s_h, r_1 to r_2, and what the box is filled with.
    erasing_probability: float = Field(0.5, ge=0, le=1)
    erasing_area: tuple[float, float] = (0.02, 0.4)  # smallest and largest box, as a share of the picture
    erasing_aspect: tuple[float, float] = (0.3, 1 / 0.3)  # height / width, flattest and steepest box
    erasing_fill: Literal["random", "mean", "zero"] = "random"  # mean: the picture's own mean colour
    flips: bool = True  # not the paper's; damage has no handedness
    brightness: float = Field(0.2, ge=0)  # not the paper's: spread of exposure between cameras
    crop_side: float = Field(1.0, gt=0, le=1)  # not the paper's: smallest side of a random crop, as a share; 1: none
    shift: float = Field(0.0, ge=0, le=0.5)  # how far a crop may reach over the edge, as a share of the side
    rotation: float = Field(0.0, ge=0, le=180)  # not the paper's: degrees, at most, either way
    # Not the paper's: how far the factors of contrast and saturation may be from 1, and the hue from its place (turns).
    contrast: float = Field(0.0, ge=0, le=1)
    saturation: float = Field(0.0, ge=0, le=1)
    hue: float = Field(0.0, ge=0, le=0.5)
    network: Literal["table3", "mixer", "custom"] = "table3"
    pooling: Literal["flatten", "average"] = "flatten"  # what FC1 sees of the feature maps; average is not the paper's
    # A backbone of one's own, for network: custom. It is imported where DAMAGE_ATLAS_MODULES allows it.
    module: str | None = Field(None, pattern=MODULE_PATTERN)
    module_arguments: dict[str, Any] = Field(default_factory=dict)
    module_weights: str | None = None  # safetensors file, on every machine that trains; null: as the class draws them
    input_size: int = Field(160, ge=32, le=2048)
    embedding_size: int = Field(16, ge=2, le=4096)
    standardize: bool = False  # take each picture's own brightness and contrast out; not the paper's
    precision: Literal["auto", "bf16", "float32"] = "auto"
    compile: bool = False  # by torch.compile, for training: pays on GPUs, if anywhere; needs a C++ compiler
    seed: int = Field(0, ge=0, lt=2**31)
    # A global batch is cut into this many shards whose gradients are added in order; workers take whole shards,
    # so that one worker and several make bit-identical steps on a CPU.
    shards: int = Field(2, ge=1)
    threads_per_shard: int = Field(1, ge=1, le=1024)
    workers: int = Field(2, ge=1)  # Ray Train processes, one per GPU or CPU worker
    # Begin with so many, take those that come and go on without those that leave; null: all of them, or none.
    fewest_workers: int | None = Field(None, ge=1)
    # Whether the version becomes the model's current one: unless that one is better on what is held out.
    promote: Literal["unless_worse", "always", "never"] = "unless_worse"
    checkpoint_every: int = Field(100, ge=1)  # iterations
    evaluate_every: int = Field(250, ge=1)  # iterations

    @field_validator("erasing_area")
    @classmethod
    def _areas_are_shares(cls, area: tuple[float, float]) -> tuple[float, float]:
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"[{area[0]:g}, {area[1]:g}] must be the smallest and the largest share, above 0 up to 1")
        return area

    @field_validator("erasing_aspect")
    @classmethod
    def _aspects_rise(cls, aspect: tuple[float, float]) -> tuple[float, float]:
        if not 0 < aspect[0] <= aspect[1]:
            raise ValueError(
                f"[{aspect[0]:g}, {aspect[1]:g}] must be the least and the largest height / width, above 0"
            )
        return aspect

    @model_validator(mode="after")
    def _shards_fit(self) -> TrainSpec:
        if self.batch_size % self.shards:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of shards ({self.shards})")
        if self.instance_weight and (self.instance_images % self.shards or self.instance_images > self.batch_size):
            raise ValueError(
                f"instance_images ({self.instance_images}) must be a multiple of shards ({self.shards}) and at most "
                f"batch_size ({self.batch_size})"
            )
        if self.shards % self.workers:
            raise ValueError(f"shards ({self.shards}) must be a multiple of workers ({self.workers})")
        if self.fewest_workers is not None and self.fewest_workers > self.workers:
            raise ValueError(f"fewest_workers ({self.fewest_workers}) must not be above workers ({self.workers})")
        return self

    @model_validator(mode="after")
    def _module_is_for_custom(self) -> TrainSpec:
        if (self.network == "custom") != (self.module is not None):
            raise ValueError("network: custom and module, package.module:Class, go together")
        if self.module is None and (self.module_arguments or self.module_weights):
            raise ValueError("module_arguments and module_weights need a module")
        return self

    @model_validator(mode="after")
    def _m_and_n_have_a_say(self) -> TrainSpec:
        if self.sampler == "balanced":
            if self.loss == "supcon" and (self.m is not None or self.n is not None):
                raise ValueError("m and n have no say in supcon over balanced batches: leave them out")
            if self.loss == "n_pair" and self.m is not None:
                raise ValueError("n_pair over balanced batches takes every positive for itself: leave m out")
        return self

    @model_validator(mode="after")
    def _mixup_has_pairs(self) -> TrainSpec:
        if self.mixup and self.loss != "mn_pair":
            raise ValueError(f"mixup is defined for the loss mn_pair, not for {self.loss}: leave one of the two out")
        if self.mixup and self.sampler != "balanced":
            raise ValueError("mixup needs more pairs of an anchor than a tuple has: set sampler to balanced")
        return self

    @model_validator(mode="after")
    def _hard_classes_are_chosen(self) -> TrainSpec:
        if self.hard_classes and (self.sampler != "tuples" or self.n is None):
            raise ValueError(
                "hard_classes chooses among the classes of tuples: set sampler to tuples, and n below them"
            )
        return self


class EmbedSpec(Document):
    """Forward passes over the archive."""

    batch_size: int = Field(64, ge=1)  # every batch is padded to it: shapes decide the last bits
    rows_per_part: int = Field(512, ge=1)
    precision: Literal["auto", "bf16", "float32"] = "auto"
    actors: int = Field(2, ge=1)
    in_job_up_to: int = Field(2048, ge=0)  # images that a Ray job embeds itself: done before its actors have started
    threads_per_actor: int = Field(1, ge=1, le=1024)


class IndexSpec(Document):
    """The FAISS index."""

    kind: Literal["auto", "flat", "ivf", "hnsw"] = "auto"
    flat_up_to: int = Field(200_000, ge=0)  # vectors; beyond it `auto` takes IVF
    rows_per_part: int = Field(100_000, ge=1)  # of IVF: vectors that one task adds
    rebuild_above: float = Field(0.2, ge=0, le=1)  # share added or removed since the index was built from nothing
    recall_wanted: float = Field(0.95, gt=0, le=1)  # IVF probes more lists until the sample's recall is at least this
    recall_sample: int = Field(1000, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)


PAPER_EPS, PAPER_MIN_NEIGHBOURS = 3.0, 10
_SET_BY_THE_PAPER = ("eps", "split_apart", "min_neighbours")


class ClusterSpec(Document):
    """Map and clusters."""

    perplexity: float = Field(30.0, gt=1)
    map_iterations: int = Field(750, ge=250)
    seed: int = Field(0, ge=0, lt=2**31)
    landmarks: int = Field(100_000, ge=1000)  # up to so many images all are mapped; beyond it so many of them
    memory_gib: float = Field(8.0, gt=0)  # refused before the stage if it is going to need more
    refit: bool = False  # fit the map anew; else new images are placed on the previous version's
    refit_above: float = Field(0.5, ge=0)  # share of images that came or went since the map was fitted
    # paper: DBSCAN with eps 3 and 10 neighbours, and nothing split.
    method: Literal["dbscan", "paper", "hdbscan", "kmeans"] = "dbscan"
    kmeans_clusters: int = Field(20, ge=1)
    eps: float | Literal["auto"] = "auto"  # map units
    # Silhouette in the embedding from which a cluster's parts become clusters; null: DBSCAN alone, as in the paper.
    split_apart: float | None = Field(0.5, ge=-1, le=1)
    min_neighbours: int = Field(10, ge=1)
    resamples: int = Field(6, ge=0, le=100)  # maps that are made to see which clusters come back; 0: none
    resamples_kept: int = Field(1, ge=1, le=100)  # as many where all clusters are those of the version before
    resample_points: int = Field(2000, ge=100)  # images of such a map
    threads: int = Field(2, ge=1, le=1024)
    # An alert needs this much: -log10 of the chance of so many new images there, all places counted in. 3 gave no
    # more than 1 false alarm in 100 quiet deliveries (docs/results.md).
    alert_score: float = Field(3.0, gt=0)
    alert_growth: float = Field(1.5, gt=1)  # size of a cluster with its new images / without them
    alert_drift: float = Field(0.25, gt=0, le=1)  # share of new images that lie far from all old ones

    @field_validator("eps")
    @classmethod
    def _eps_is_positive(cls, eps: float | str) -> float | str:
        if not isinstance(eps, str) and eps <= 0:
            raise ValueError("eps must be above 0, or auto")
        return eps

    @model_validator(mode="after")
    def _the_paper_says(self) -> ClusterSpec:
        if self.method == "paper":
            for name in _SET_BY_THE_PAPER:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"method paper sets {name} itself: leave it out, or take method dbscan")
        return self


class ExplainSpec(Document):
    """Picture rows and heat maps."""

    nearest: int = Field(9, ge=1, le=50)
    target: Literal["sum_of_squares"] = "sum_of_squares"  # equation (6)
    method: Literal["gradcam", "hirescam"] = "gradcam"
    picture_size: int = Field(160, ge=32, le=1024)  # pixels


class ReportSpec(Document):
    """The page people read."""

    title: str | None = None
    hover_pictures: int = Field(1500, ge=0)  # points that carry a thumbnail
    thumbnail_size: int = Field(56, ge=16, le=256)  # pixels
    # Label, or `cluster 16` -> grade, 0 (none) to 5 (worst): the code table that severities come from.
    severities: dict[str, Annotated[float, Field(ge=0, le=MAX_GRADE)]] = Field(default_factory=dict)
    severity_of_others: float = Field(3.0, ge=0, le=MAX_GRADE)  # of labels that the table lacks and that name damage
    same_place_m: float = Field(0.5, gt=0)  # positions as near as this are one place
    same_place_clock: float = Field(1.0, ge=0, le=6)  # hours of the clock face


class Settings(Document):
    """One section per stage."""

    catalog: CatalogSpec = CatalogSpec()
    train: TrainSpec = TrainSpec()
    embed: EmbedSpec = EmbedSpec()
    index: IndexSpec = IndexSpec()
    cluster: ClusterSpec = ClusterSpec()
    explain: ExplainSpec = ExplainSpec()
    report: ReportSpec = ReportSpec()


class RunSpec(Document):
    """``run.yaml``: everything that decides what a run does."""

    run_id: str
    kind: RunKind
    archive: str
    images: str  # folder or s3:// prefix
    delivery: str | None = None  # list up to and with this one; null: all there are
    model: str
    # Resolved when the run is opened, so that a retry next week means the same thing.
    model_version: str | None = None
    previous_version: int | None = None
    settings: Settings = Settings()

    @field_validator("run_id", "archive", "model")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return check_name(name)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this kind of run, in order."""
        return STAGES_OF_KIND[self.kind]


class NotifierSpec(Document):
    """An Airflow notifier that carries alerts: mail, Slack, a pager, whatever is installed."""

    notifier: str = Field(pattern=MODULE_PATTERN)
    # Of the class; what it calls template fields may use {{ alert_subject }}, {{ alert_text }} and {{ alerts }}.
    arguments: dict[str, Any] = Field(default_factory=dict)


class ArchiveSpec(Document):
    """An archive file, ``infra/archives/*.yaml``: where the images lie, which model, when, and with what settings."""

    archive: str
    images: str
    model: str
    description: str = ""
    owner: str = "inspection"
    schedule: str | None = None  # cron
    timezone: str = "UTC"
    max_age_days: float | None = Field(None, gt=0)  # a current version older than this raises an alert
    tags: list[str] = Field(default_factory=list)
    notifiers: list[NotifierSpec] = Field(default_factory=list)  # of alerts
    deadline_hours: float = Field(24, gt=0)  # a run that takes longer is told to whoever is told of failures
    training_images: str | None = None  # labelled images that `train_model` learns from
    training_settings: Settings = Settings()
    settings: Settings = Settings(catalog=CatalogSpec(labels="none", deliveries="folder"))

    @field_validator("archive", "model")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return check_name(name)


def check_name(name: str) -> str:
    """Return ``name``; raise ValueError unless it can be part of a key: letters, digits, ``._-``."""
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise ValueError(f"{name!r} is not a name: use letters, digits, '.', '_' and '-', at most 128 of them")
    return name


def parse_document(kind: type[D], text: str, where: str) -> D:
    """Parse YAML (or JSON) into ``kind``.

    Raises:
        SpecError: one line naming the key, with the nearest right key where one is misspelt.
    """
    data = load_yaml(text, where)
    if not isinstance(data, dict):
        raise SpecError(f"{where}: expected a mapping of settings, found {type(data).__name__}.")
    return build_document(kind, data, where)


def load_yaml(text: str, where: str) -> Any:
    """What YAML (or JSON) text says; SpecError with one line when it says nothing that can be read."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date, say
        raise SpecError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def build_document(kind: type[D], data: dict[str, Any], where: str) -> D:
    """Validate ``data`` as ``kind``; errors as in ``parse_document``."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"{where}: " + "; ".join(_explain(kind, e) for e in error.errors()[:5])) from error


def dump_yaml(document: BaseModel) -> str:
    """The document as YAML, keys in the order of the class."""
    return yaml.safe_dump(document.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def with_overrides(document: D, assignments: list[str], where: str = "--set") -> D:
    """Apply ``section.key=value`` assignments; values are YAML.

    Raises:
        SpecError: no ``=``, an unknown key, or a value out of range.
    """
    data = document.model_dump(mode="json")
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise SpecError(f"{where} {assignment}: expected key=value, for example train.iterations=500.")
        *sections, key = path.strip().split(".")
        target = data
        for section in sections:
            child = target.setdefault(section, {})
            if not isinstance(child, dict):
                raise SpecError(f"{where} {assignment}: {section} is not a section.")
            target = child
        target[key] = load_yaml(value, f"{where} {path}")
    return build_document(type(document), data, where)


def changed_keys(old: BaseModel, new: BaseModel) -> list[str]:
    """Dotted names of the settings in which two documents differ."""
    flat_old, flat_new = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    return sorted(k for k in flat_old.keys() | flat_new.keys() if flat_old.get(k) != flat_new.get(k))


def _flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _setting_names(kind: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for key, field in kind.model_fields.items():
        names.append(prefix + key)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _setting_names(field.annotation, f"{prefix}{key}.")
    return names


def _explain(kind: type[BaseModel], error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, _setting_names(kind), n=1, cutoff=0.6)
        return f"{name} is not a setting." + (f" Did you mean {close[0]}?" if close else "")
    if error["type"] == "missing":
        return f"{name} is missing."
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message

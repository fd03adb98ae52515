"""Who is who in the demo archive: a pure function from an index to a file, its truth and its circumstances.

Nothing here opens a file or keeps state, so any process can make any part of an archive of any size.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from damage_atlas.demo.damage import MODES, NEW_KIND
from damage_atlas.demo.textures import MATERIALS

MODE_LIST = tuple((name, mode) for name, modes in MODES.items() for mode in modes)
LABELLED_SHARE = 0.45
DOUBLE_EVERY = 25  # every 25th labelled image shows two kinds of damage
GROUP_BLOCK = 32  # labelled images come in blocks; a block's images of one material are one structure
NEW_KIND_DELIVERY = 2  # the third
SMALLEST = len(MODE_LIST)

# What a random number generator is for; together with the archive's seed and an index it is the whole seed.
BANK, STRUCTURE, LABELLED, ARCHIVE, LARGE, PLANTED = range(6)

# How often a class is seen on a material. Every class lies on several: a background gives little away.
SEEN_ON: dict[str, dict[str, float]] = {
    "crack": {"deck": 0.40, "pavement": 0.20, "steel": 0.15, "pipe": 0.25},
    "spalling": {"deck": 0.45, "pavement": 0.25, "pipe": 0.30},
    "corrosion": {"deck": 0.10, "steel": 0.50, "pipe": 0.40},
    "scratch": {"deck": 0.25, "pavement": 0.25, "steel": 0.35, "pipe": 0.15},
    "joint": {"deck": 0.35, "pavement": 0.20, "steel": 0.15, "pipe": 0.30},
    "sound": {"deck": 0.30, "pavement": 0.20, "steel": 0.25, "pipe": 0.25},
    NEW_KIND: {"deck": 0.60, "pipe": 0.40},
}
SEASONS = ("spring", "summer", "autumn", "winter")


@dataclass(frozen=True)
class Asset:
    """A structure in the archive; ``prefix`` is how its camera names files."""

    name: str
    materials: tuple[str, ...]
    prefix: str
    latitude: float
    longitude: float


@dataclass(frozen=True)
class Shot:
    """One picture: where it lies under ``images/`` and what is really on it.

    ``rng_key`` seeds everything random about its pixels. ``layers`` are one or two (class, mode).
    """

    file: str
    rng_key: tuple[int, ...]
    layers: tuple[tuple[str, str], ...]
    material: str
    group: str
    planted: str = ""
    delivery: str = ""
    asset: Asset | None = None
    captured_at: datetime | None = None
    severity: float | None = None  # of its damage, 0 to 1; by default chance decides

    @property
    def label(self) -> str:
        """The class, as a folder of training images is called."""
        return "+".join(name for name, _ in self.layers)

    @property
    def mode(self) -> str:
        """The hidden mode; two joined by "+" where two are painted."""
        return "+".join(mode for _, mode in self.layers)


@dataclass(frozen=True)
class Plan:
    """An archive of ``size`` close-ups: settings in, shots out."""

    size: int
    n_deliveries: int
    seed: int

    @property
    def n_labelled(self) -> int:
        """How many training images."""
        return round(LABELLED_SHARE * self.size)

    @property
    def n_archive(self) -> int:
        """How many close-ups of the archive."""
        return self.size - self.n_labelled

    @property
    def deliveries(self) -> tuple[str, ...]:
        """Folder names, one round a season; they sort by time."""
        return tuple(
            f"{2026 + (2 + 3 * d) // 12}-{(2 + 3 * d) % 12 + 1:02d}-{SEASONS[d % 4]}-round"
            for d in range(self.n_deliveries)
        )

    @property
    def assets(self) -> tuple[Asset, ...]:
        """Bridge spans, sewer runs and cranes in turn: nine by default, 102 for 200,000 images."""
        kinds = (
            ("north-viaduct-span", ("deck", "pavement"), "DJI_"),
            ("mill-lane-sewer-run", ("pipe",), "RUN_"),
            ("harbour-crane", ("steel",), "SCAN_"),
        )
        n_each = max(2, round(math.sqrt(self.size) / 13))
        return tuple(
            Asset(f"{name}-{k + 1:02d}", materials, prefix, 54.50 + 0.0021 * k + 0.03 * i, -1.60 + 0.0034 * k)
            for k in range(n_each)
            for i, (name, materials, prefix) in enumerate(kinds)
        )

    @property
    def n_new_kind(self) -> int:
        """How many close-ups of the third delivery show the new kind; 0 where there is no third."""
        if self.n_deliveries <= NEW_KIND_DELIVERY:
            return 0
        in_delivery = self.n_archive // self.n_deliveries
        return min(round(35 * math.sqrt(self.size / 1500)), max(1, in_delivery // 4))

    @property
    def photos_per_delivery(self) -> int:
        """How many 20-megapixel photos a delivery holds."""
        return 1 + math.isqrt(self.size) // 200

    @property
    def n_photos(self) -> int:
        """How many 20-megapixel photos in all."""
        return self.photos_per_delivery * self.n_deliveries

    @property
    def n_copies(self) -> int:
        """How many duplicates of each sort; it grows as the root of the size."""
        return 2 + math.isqrt(self.size) // 8

    def first_of(self, delivery: int) -> int:
        """Index of the first archive close-up of a delivery; of the end for ``delivery == n_deliveries``."""
        return -(-delivery * self.n_archive // self.n_deliveries)

    def captured_at(self, delivery: int, k: int) -> datetime:
        """When the ``k``-th picture of a delivery was taken: one every 20 seconds."""
        year, month = (int(part) for part in self.deliveries[delivery].split("-")[:2])
        return datetime(year, month, 5, 9) + timedelta(seconds=20 * k)

    def labelled(self, i: int) -> Shot:
        """The ``i``-th training image."""
        rng = np.random.default_rng([self.seed, LABELLED, i])
        layers: tuple[tuple[str, str], ...] = (MODE_LIST[i % len(MODE_LIST)],)
        if i % DOUBLE_EVERY == DOUBLE_EVERY - 1:
            crack = ("longitudinal", "transverse")[rng.integers(2)]
            layers = (("crack", crack), ("spalling", ("scaling", "popout")[rng.integers(2)]))
        material = _material(rng, layers[-1][0])
        shot_class = "+".join(name for name, _ in layers)
        return Shot(
            file=f"labelled/{shot_class}/IMG_{i:06d}.jpg",
            rng_key=(self.seed, LABELLED, i),
            layers=layers,
            material=material,
            group=f"{material}-{i // GROUP_BLOCK:04d}",
        )

    def archive(self, j: int) -> Shot:
        """The ``j``-th close-up of the archive."""
        rng = np.random.default_rng([self.seed, ARCHIVE, j])
        delivery = j * self.n_deliveries // self.n_archive
        k = j - self.first_of(delivery)
        layer, planted = MODE_LIST[j % len(MODE_LIST)], ""
        if delivery == NEW_KIND_DELIVERY and self._is_new_kind(k):
            layer, planted = (NEW_KIND, NEW_KIND), "new_kind"
        material = _material(rng, layer[0])
        able = [asset for asset in self.assets if material in asset.materials]
        asset = able[rng.integers(len(able))]
        return Shot(
            file=f"archive/{self.deliveries[delivery]}/{asset.name}/{asset.prefix}{j:06d}.jpg",
            rng_key=(self.seed, ARCHIVE, j),
            layers=(layer,),
            material=material,
            group=f"{asset.name}-{material}",
            planted=planted,
            delivery=self.deliveries[delivery],
            asset=asset,
            captured_at=self.captured_at(delivery, k),
        )

    def large(self, p: int) -> Shot:
        """The ``p``-th 20-megapixel photo: a bridge deck, sound but for one fine crack."""
        delivery, nth = divmod(p, self.photos_per_delivery)
        spans = [asset for asset in self.assets if "deck" in asset.materials]
        asset = spans[p % len(spans)]
        return Shot(
            file=f"archive/{self.deliveries[delivery]}/{asset.name}/DJI_overview_{nth + 1:02d}.jpg",
            rng_key=(self.seed, LARGE, p),
            layers=(("crack", ("transverse", "longitudinal")[p % 2]),),
            material="deck",
            group=f"{asset.name}-deck",
            planted="photo",
            delivery=self.deliveries[delivery],
            asset=asset,
            captured_at=self.captured_at(delivery, 0) - timedelta(minutes=nth + 1),
        )

    def _is_new_kind(self, k: int) -> bool:
        in_delivery = self.first_of(NEW_KIND_DELIVERY + 1) - self.first_of(NEW_KIND_DELIVERY)
        every = in_delivery // self.n_new_kind
        return k % every == every - 1 and k // every < self.n_new_kind


def _material(rng: np.random.Generator, damage: str) -> str:
    weights = SEEN_ON[damage]
    at, total = rng.random(), 0.0
    for material in MATERIALS:
        total += weights.get(material, 0.0)
        if at < total:
            return material
    return next(reversed(weights))  # the weights add up to 1 but for rounding

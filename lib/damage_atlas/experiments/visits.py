"""Does the visit list find the assets that are badly damaged? Many assets, few of them with severe planted damage.

    python -m damage_atlas.experiments.visits --out var/visits --assets 120

An archive of the demo's surfaces and damage: each asset has eight places, photographed anew in three inspections; one
in ten is missed, one in ten is photographed twice within a second. Ordinary assets are sound or mildly damaged, and one
place in twenty gets a mild damage from one inspection to the next. A few assets (8%) have, at last, two to four places
with a severe form: exposed bars, map cracking, flaking rust. On every other one of these it was there from the start,
on the rest it has come up. Nobody labels severe forms: the model learns the demo's six classes on other structures, and
the code table grades these classes.

Reviewed are the first 10% of the assets, in the order of the visit list; of random chance; and of a plain classifier
(logistic regression from the labelled images' vectors) by the share of an asset's newest images that it calls damaged,
and by their expected weight in the same code table.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from sklearn.linear_model import LogisticRegression

from damage_atlas.demo.plan import Asset, Plan, Shot
from damage_atlas.demo.render import write_close_up
from damage_atlas.demo.runs import DEMO_ARCHIVE
from damage_atlas.neighbours import read_vectors
from damage_atlas.pipeline import run_pipeline
from damage_atlas.report.assets import Term, asset_terms
from damage_atlas.report.gather import gather_courses
from damage_atlas.report.severity import CodeTable, weight
from damage_atlas.spec import CatalogSpec, Settings
from damage_atlas.store import Run, Store, start_run
from damage_atlas.store.versions import read_reference, run_model

DELIVERIES: Final = ("2026-03", "2026-06", "2026-09")
PLACES: Final = 8
PLACE_STEP_M: Final = 5.0
SEVERE_SHARE: Final = 0.08
_MISSED, _TWICE = 0.1, 0.1
_COMES_UP = 0.05  # a mild damage, at a place, from one inspection to the next
_VISITS: Final = 40  # beside the demo's own purposes of a random number generator

Layer = tuple[str, str]
SOUND: Final[tuple[Layer, ...]] = (("sound", "bare"), ("sound", "tined"), ("sound", "fittings"))
# What an ordinary asset shows, and how often, by what its surface can have.
MILD: Final[dict[Layer, float]] = {
    ("joint", "open"): 0.10,
    ("scratch", "gouge"): 0.05,
    ("scratch", "scrape"): 0.05,
    ("crack", "longitudinal"): 0.05,
    ("crack", "transverse"): 0.05,
    ("corrosion", "bloom"): 0.08,
    ("spalling", "popout"): 0.04,
    ("spalling", "scaling"): 0.03,
}
SEVERE: Final[dict[str, tuple[Layer, ...]]] = {
    "deck": (("spalling", "exposed_bar"), ("crack", "map")),
    "pipe": (("spalling", "exposed_bar"), ("crack", "map"), ("corrosion", "flaking")),
    "steel": (("corrosion", "flaking"),),
}
_KINDS: Final = (("span", "deck", "DJI_"), ("run", "pipe", "RUN_"), ("crane", "steel", "SCAN_"))


@dataclass(frozen=True)
class PlannedImage:
    """A picture and where it lies on its asset."""

    shot: Shot
    position_m: float


@dataclass(frozen=True)
class VisitPlan:
    """An archive with few badly damaged assets: settings in, pictures out."""

    n_assets: int
    draw: int
    seed: int = 0  # of the surfaces, the demo's

    @property
    def severe(self) -> frozenset[int]:
        """The assets with severe damage in the newest inspection."""
        rng = np.random.default_rng([self.seed, _VISITS, self.draw])
        n = max(1, round(SEVERE_SHARE * self.n_assets))
        return frozenset(rng.choice(self.n_assets, n, replace=False).tolist())

    def name(self, asset: int) -> str:
        """What the asset is called."""
        return f"{_KINDS[asset % len(_KINDS)][0]}-{asset + 1:03d}"

    def images(self, delivery: int) -> Iterator[PlannedImage]:
        """The pictures of one delivery, asset by asset."""
        for asset in range(self.n_assets):
            yield from self._of_asset(asset, delivery)

    def _of_asset(self, asset: int, delivery: int) -> Iterator[PlannedImage]:
        _, material, prefix = _KINDS[asset % len(_KINDS)]
        name = self.name(asset)
        structure = Asset(name, (material,), prefix, 54.5 + 0.002 * asset, -1.6)
        history = self._history(asset)
        for place in range(PLACES):
            chance = np.random.default_rng([self.seed, _VISITS, self.draw, asset, place, delivery])
            if chance.random() < _MISSED:
                continue
            layer, severity = history[place][delivery]
            taken = datetime(2026, 3 + 3 * delivery, 5, 9) + timedelta(minutes=20 * asset, seconds=40 * place)
            position_m = PLACE_STEP_M * place + float(chance.normal(0, 0.1))
            for frame in range(2 if chance.random() < _TWICE else 1):
                number = 10 * place + frame
                yield PlannedImage(
                    Shot(
                        file=f"{DELIVERIES[delivery]}/{name}/{prefix}{number:03d}.jpg",
                        rng_key=(self.seed, _VISITS, self.draw, asset, place, delivery, frame),
                        layers=(layer,),
                        material=material,
                        group=f"draw-{self.draw}-{name}",
                        delivery=DELIVERIES[delivery],
                        asset=structure,
                        captured_at=taken + timedelta(milliseconds=400 * frame),
                        severity=severity,
                    ),
                    position_m,
                )

    def _history(self, asset: int) -> list[list[tuple[Layer, float]]]:
        """For each place what it shows in each inspection, and how badly (0 to 1)."""
        rng = np.random.default_rng([self.seed, _VISITS, self.draw, asset])
        material = _KINDS[asset % len(_KINDS)][1]
        history = [self._ordinary(rng, material) for _ in range(PLACES)]
        if asset in self.severe:
            form = SEVERE[material][rng.integers(len(SEVERE[material]))]
            from_the_start = sorted(self.severe).index(asset) % 2 == 0
            for place in rng.choice(PLACES, rng.integers(2, 5), replace=False):
                since = 0 if from_the_start else int(rng.integers(1, len(DELIVERIES)))
                history[place][since:] = [(form, float(rng.uniform(0.7, 1)))] * (len(DELIVERIES) - since)
        return history

    def _ordinary(self, rng: np.random.Generator, material: str) -> list[tuple[Layer, float]]:
        able = [layer for layer in MILD if material != "steel" or layer[0] != "spalling"]
        weights = np.array([MILD[layer] for layer in able])
        state: tuple[Layer, float] = (SOUND[rng.integers(len(SOUND))], 0.5)
        if rng.random() < weights.sum():
            state = (able[rng.choice(len(able), p=weights / weights.sum())], float(rng.uniform(0, 0.5)))
        course = [state]
        for _ in DELIVERIES[1:]:
            if state[0][0] == "sound" and rng.random() < _COMES_UP:
                state = (able[rng.choice(len(able), p=weights / weights.sum())], float(rng.uniform(0, 0.5)))
            course.append(state)
        return course


def write_deliveries(plan: VisitPlan, images: Path, last: int) -> None:
    """Write the pictures up to and with delivery ``last``, and a manifest that says where each lies."""
    rows = []
    for delivery in range(last + 1):
        for image in plan.images(delivery):
            shot = image.shot
            if not (images / shot.file).exists():
                write_close_up(images, shot)
            assert shot.asset is not None and shot.captured_at is not None
            rows.append((shot.file, shot.asset.name, f"{image.position_m:.2f}", shot.captured_at.isoformat()))
    with (images / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file", "asset_id", "position_m", "captured_at"))
        table.writerows(rows)


def train(out: Path, store: Store, labelled: int) -> None:
    """The demo's model, on the demo's labelled images: none shows a structure of the archives."""
    plan = Plan(round(labelled / 0.45), 1, 0)
    folder = out / "labelled"
    rows = []
    for shot in (plan.labelled(i) for i in range(plan.n_labelled)):
        rows.append((shot.file.removeprefix("labelled/"), shot.group))
        if not (out / shot.file).exists():
            write_close_up(out, shot)
    with (folder / "groups.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file", "group"))
        table.writerows(rows)
    run = start_run(
        store, kind="train", archive="visits", images=str(folder), model="visits",
        settings=DEMO_ARCHIVE.training_settings, run_id="visits-training",
    )  # fmt: skip
    list(run_pipeline(run))


def publish(out: Path, store: Store, plan: VisitPlan) -> Run:
    """A version with the first two deliveries, then one with all three; the last one's run."""
    archive, images = f"visits-{plan.draw}", out / f"images-{plan.draw}"
    settings = Settings(
        catalog=CatalogSpec(labels="none", deliveries="folder", manifest="manifest.csv"),
        report=DEMO_ARCHIVE.settings.report.model_copy(update={"hover_pictures": 0}),
    )
    for number in (1, 2):
        run = start_run(
            store, kind="recluster", archive=archive, images=str(images), model="visits", settings=settings,
            delivery=DELIVERIES[number], run_id=f"{archive}-{DELIVERIES[number]}",
        )  # fmt: skip
        if run.stage("publish").sealed is None:
            write_deliveries(plan, images, number)
            list(run_pipeline(run))
    return run


def classifier_scores(run: Run, codes: CodeTable) -> dict[str, dict[str, float]]:
    """Two rankings by a plain classifier: name -> asset -> score, from each asset's newest inspection."""
    reference = read_reference(run.store, run_model(run)).to_pylist()
    model = LogisticRegression(max_iter=1000).fit(
        np.array([row["vector"] for row in reference]), [row["label"] for row in reference]
    )
    ids, vectors_ND = read_vectors(run)
    at = {image_id: i for i, image_id in enumerate(ids)}
    grades = np.array([codes.grade(label) for label in model.classes_])
    chances_NC = model.predict_proba(vectors_ND)
    damaged_N = grades[chances_NC.argmax(axis=1)] > 0
    expected_N = chances_NC @ np.array([weight(grade) for grade in grades])
    newest: dict[str, tuple[str, list[int]]] = {}
    for row in run.read_table("cluster", "points.parquet", ["image_id", "asset_id", "delivery"]).to_pylist():
        delivery, rows = newest.get(row["asset_id"], ("", []))
        if row["delivery"] > delivery:
            delivery, rows = row["delivery"], []
        if row["delivery"] == delivery:
            rows.append(at[row["image_id"]])
        newest[row["asset_id"]] = (delivery, rows)
    return {
        "classifier, share of damaged": {asset: float(damaged_N[rows].mean()) for asset, (_, rows) in newest.items()},
        "classifier, expected grade": {asset: float(expected_N[rows].mean()) for asset, (_, rows) in newest.items()},
    }


def visit_scores(run: Run) -> dict[str, dict[str, float]]:
    """The visit list, and what is left of it without some of its factors: name -> asset -> score."""
    courses, labels, born = gather_courses(run)

    def most(terms: Sequence[Term], score: Callable[[Term], float]) -> float:
        return max(map(score, terms), default=0.0)

    found: dict[str, dict[str, float]] = defaultdict(dict)
    for asset, terms in asset_terms(courses, labels, born).items():
        found["visit list"][asset] = most(terms, lambda t: t.score)
        found["without rarity"][asset] = most(terms, lambda t: t.score / (1 + t.rarity))
        found["without change"][asset] = most(terms, lambda t: t.score / (1 + t.change))
        found["severity x extent alone"][asset] = most(terms, lambda t: weight(t.grade) * t.extent)
        found["summed over kinds"][asset] = sum(t.score for t in terms)
    listed = run.read_table("report", "assets.parquet", ["asset_id", "score"]).to_pylist()
    for row in listed:  # what is measured here is what the report says
        assert math.isclose(row["score"], found["visit list"][row["asset_id"]], rel_tol=1e-3, abs_tol=1e-2)
    return dict(found)


def found_share(scores: Mapping[str, float], severe: Sequence[str], reviewed: int) -> float:
    """Share of the severe assets among the first ``reviewed``; ties count by their expectation."""
    values = sorted(scores.values(), reverse=True)
    limit = values[reviewed - 1]
    above = [asset for asset, score in scores.items() if score > limit]
    tied = [asset for asset, score in scores.items() if score == limit]
    part = (reviewed - len(above)) / len(tied)
    return sum(1.0 if scores[a] > limit else part if scores[a] == limit else 0.0 for a in severe) / len(severe)


def measure(out: Path, store: Store, plan: VisitPlan) -> dict[str, Any]:
    """One draw: share of the severe assets found among the first 10%, by ranking."""
    run = publish(out, store, plan)
    names = [plan.name(asset) for asset in range(plan.n_assets)]
    severe = [plan.name(asset) for asset in sorted(plan.severe)]
    reviewed = round(0.1 * plan.n_assets)
    codes = CodeTable.of(run.spec.settings.report)
    rankings = visit_scores(run) | classifier_scores(run, codes)
    missing = {asset: 0.0 for asset in names}
    return {
        "draw": plan.draw,
        "assets": plan.n_assets,
        "severe": len(severe),
        "reviewed": reviewed,
        "images": run.artifact("cluster").counts["in"],
        "clusters": run.read_table("cluster", "clusters.parquet").num_rows,
        "found": {"random order": reviewed / plan.n_assets}
        | {name: found_share(missing | scores, severe, reviewed) for name, scores in rankings.items()},
    }


def main() -> None:
    """Train, publish, and print what each ranking finds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; what is in it already is taken")
    parser.add_argument("--assets", type=int, default=120)
    parser.add_argument("--draws", type=int, nargs="+", default=[2, 3, 4, 5], help="each is another archive")
    parser.add_argument("--labelled", type=int, default=675)
    arguments = parser.parse_args()
    store = Store(arguments.out / "store")
    train(arguments.out, store, arguments.labelled)
    results = []
    for draw in arguments.draws:
        results.append(measure(arguments.out, store, VisitPlan(arguments.assets, draw)))
        print(json.dumps(results[-1]), flush=True)
    for name in results[0]["found"]:
        shares = [result["found"][name] for result in results]
        print(f"{name}: {np.mean(shares):.2f} of the severe assets found ({', '.join(f'{s:.2f}' for s in shares)})")


if __name__ == "__main__":
    main()

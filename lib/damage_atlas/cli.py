"""The command line. Every command has --help; --json prints facts; exit code 0 ok, 1 a retry may help, 2 bad input."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from damage_atlas.contracts import Remark
from damage_atlas.errors import AtlasError, InputError
from damage_atlas.spec import (
    MAX_GRADE,
    ArchiveSpec,
    CatalogSpec,
    RunSpec,
    Settings,
    load_yaml,
    parse_document,
    with_overrides,
)
from damage_atlas.store import Run, Store, start_run
from damage_atlas.store.versions import read_version

app = typer.Typer(
    help="Damage Atlas: a folder of inspection images becomes a published map of damage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()

JsonFlag = Annotated[bool, typer.Option("--json", help="Print facts as one JSON object.")]
StoreOption = Annotated[
    str, typer.Option("--store", envvar="DAMAGE_ATLAS_STORE", help="file:///folder, a path, or s3://bucket/prefix.")
]
ArchiveOption = Annotated[str, typer.Option("--archive", help="Name of the archive.")]
ImagesOption = Annotated[str, typer.Option("--images", help="Folder or s3:// prefix with the images.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A setting, e.g. train.iterations=500.")]
SpecOption = Annotated[Path | None, typer.Option("--spec", help="YAML file of settings.")]
GroupsOption = Annotated[
    str | None, typer.Option("--groups", help="CSV (file, group): images of a group stay in one split.")
]
RunIdOption = Annotated[str | None, typer.Option("--run-id", help="Name the run, or go on with the one of that name.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Address of a run, as `run` and `recluster` print it.")]
ClusterArgument = Annotated[int, typer.Argument(help="A cluster's id.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Who says so; by default who is logged in.")]
_HIGHEST_PORT = 65535
_TYPER_INTERRUPTED = 130  # what typer makes of Ctrl-C
KFlag = Annotated[int, typer.Option("-k", help="How many.")]


def main() -> None:
    """Run the command line; a user's mistake ends in one line, never in a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("damage_atlas").setLevel(logging.INFO)
    try:
        app()
    except AtlasError as error:
        print(f"damage-atlas: {' '.join(error.message.split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code != _TYPER_INTERRUPTED:
            raise
        print("damage-atlas: stopped. The same command goes on where it stopped.", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output went away; that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.command()
def run(
    images: ImagesOption,
    store: StoreOption,
    archive: Annotated[str | None, typer.Option("--archive", help="Name; by default the folder's.")] = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    groups: GroupsOption = None,
    run_id: RunIdOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Every stage on a folder of images: train (class = sub-folder), then the rest; stopped runs go on."""
    name = archive or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(images.rstrip("/")).name).strip("-.") or "images"
    settings = _settings(spec, set_, groups, Settings())
    _finish(
        start_run(Store(store), kind="run", archive=name, images=images, model=name, settings=settings, run_id=run_id),
        as_json,
    )


@app.command()
def recluster(
    store: StoreOption,
    archive: ArchiveOption,
    images: ImagesOption,
    model: Annotated[str, typer.Option("--model", help="NAME or NAME@VERSION; by default the promoted version.")],
    vectors: Annotated[
        str | None, typer.Option("--vectors", help="Parquet file of vectors that another model made; --model names it.")
    ] = None,
    delivery: Annotated[str | None, typer.Option("--delivery", help="List up to and with this delivery.")] = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    run_id: RunIdOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Catalog to publish with a model that is there; vectors of earlier runs are reused."""
    if vectors is not None:
        from damage_atlas.embed import adopt_vectors

        card = adopt_vectors(Store(store), model, vectors)
        model = f"{card.model}@{card.version}"
    defaults = Settings(catalog=CatalogSpec(labels="none", deliveries="folder" if delivery else "none"))
    _finish(
        start_run(
            Store(store),
            kind="recluster",
            archive=archive,
            images=images,
            model=model,
            settings=_settings(spec, set_, None, defaults),
            delivery=delivery,
            run_id=run_id,
        ),
        as_json,
    )


def _stage_command(name: str, help_text: str) -> None:
    def command(run_uri: RunArgument, as_json: JsonFlag = False) -> None:
        from damage_atlas.pipeline import run_stage

        artifact = run_stage(Run.load(run_uri), name)
        _print(artifact.model_dump(mode="json"), as_json, f"{name}: complete, {artifact.counts}")

    command.__doc__ = help_text
    app.command(name)(command)


_stage_command("catalog", "One stage of a run: list, check, hash, tile and split its images.")
_stage_command("train", "One stage of a run: learn the embedding and register a model version.")
_stage_command("embed", "One stage of a run: a vector for every image that has none.")
_stage_command("index", "One stage of a run: the FAISS index, with its measured recall.")
_stage_command("cluster", "One stage of a run: map, clusters and their persistent ids.")
_stage_command("explain", "One stage of a run: nearest images and heat maps.")
_stage_command("report", "One stage of a run: the page people read, its figures and its JSON twin.")
_stage_command("publish", "One stage of a run: verify all digests and make the run the current version.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to work in.")] = Path("var/demo"),
    size: Annotated[int, typer.Option("--size", min=60, help="How many images.")] = 1500,
    deliveries: Annotated[int, typer.Option("--deliveries", min=1, help="How many deliveries.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Of all draws.")] = 0,
    images_only: Annotated[bool, typer.Option("--images-only", help="Make the images and stop.")] = False,
    truth_only: Annotated[
        bool, typer.Option("--truth-only", help="Compare the current version with the truth and stop.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """A procedural inspection archive with known hidden sub-modes, through every stage in one process."""
    from damage_atlas.demo import make_demo
    from damage_atlas.progress import Progress

    if truth_only:
        from damage_atlas.demo.truth import score_against_truth

        if not (out / "truth.csv").exists():
            raise InputError(f"{out} holds no demo archive. Make one: damage-atlas demo --out {out}")
        scores = score_against_truth(out, "demo")
        _print(scores, as_json, _truth_text(scores))
        return
    archive = out / "images" / "archive"
    if (out / "truth.csv").exists():
        logging.getLogger("damage_atlas").info("images: %s is there already, its settings stay", out / "images")
    else:
        with Progress("images", "images", size) as progress:

            def show(done: int, total: int) -> None:
                progress.total = total  # with the large photos
                progress.add(done - progress.done)

            make_demo(out, size=size, deliveries=deliveries, seed=seed, on_progress=show)
    names = tuple(sorted(folder.name for folder in archive.iterdir() if folder.is_dir()))
    if images_only:
        _print({"images": str(out / "images"), "deliveries": names}, as_json, f"demo images lie in {out / 'images'}")
        return
    from damage_atlas.demo.runs import run_demo

    _print_summaries(run_demo(out, names), as_json)


@app.command()
def search(
    image: Annotated[
        str,
        typer.Argument(
            help="A file, a URI, or an image_id of the archive. A file is looked at as a whole, however large it is; "
            "for a place in a large photo give the image_id of its tile."
        ),
    ],
    store: StoreOption,
    archive: ArchiveOption,
    k: KFlag = 10,
    asset: Annotated[str | None, typer.Option("--asset", help="Among the images of this asset.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Among those of this class, given or predicted.")] = None,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Among those of this cluster, or noise.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Captured on this day or later: 2026-03-01, or with a time.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Captured on this day or earlier.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The nearest images of the current version, with their clusters and where they lie; filters combine."""
    from damage_atlas.query import search as find

    rows = find(store, archive, image, k, asset=asset, label=label, cluster=cluster, since=since, until=until)
    if as_json:
        _json(rows)
    elif not rows:
        console.print("no image passes all filters")
    else:
        _places(rows, ("rank", "similarity"), ("cluster_id", "label"))


@app.command()
def duplicates(
    store: StoreOption,
    archive: ArchiveOption,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Cosine from which two images are nearly the same.")
    ] = 0.999,
    limit: Annotated[int | None, typer.Option("--limit", help="So many of the largest groups; all by default.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Groups of images of the current version that are nearly the same, the largest first."""
    from damage_atlas.query import near_duplicates

    groups = near_duplicates(store, archive, threshold, limit)
    if as_json:
        _json(groups)
    elif not groups:
        console.print(f"no two images are {threshold} alike", highlight=False)
    else:
        _places([group | place for group in groups for place in group["places"]], ("group", "lowest_similarity"))


@app.command()
def decide(
    asset: Annotated[str, typer.Argument(help="As the report names it.")],
    decision: Annotated[str, typer.Argument(help="visit, defer, known; none takes an earlier decision back.")],
    store: StoreOption,
    archive: ArchiveOption,
    by: Annotated[str, typer.Option("--by", envvar="DAMAGE_ATLAS_USER", help="Who decides.")],
    note: Annotated[str, typer.Option("--note", help="Shown beside the decision.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Note what is to be done about an asset; the reports of all later runs show it, with who and when."""
    from damage_atlas.decide import decide as note_down

    made = note_down(Store(store), archive, asset, decision, by, note)
    _print(
        made,
        as_json,
        f"decision {made['number']} of {archive}: {asset} is {made['decision']}, by {made['decided_by']}; reports "
        "show it from the next run on",
    )


@app.command()
def decisions(store: StoreOption, archive: ArchiveOption, as_json: JsonFlag = False) -> None:
    """The decisions about assets that hold, the newest first."""
    from damage_atlas.decide import decisions as that_hold

    rows = that_hold(Store(store), archive)
    if as_json:
        _json(rows)
    elif rows:
        _table(rows, ("asset_id", "decision", "decided_by", "decided_at", "version", "note"))
    else:
        console.print(f"nothing is decided in {archive}", highlight=False, markup=False)


@app.command()
def forget(
    uris: Annotated[
        list[str],
        typer.Argument(
            metavar="URI...",
            help="Each a uri as the report prints it, a path below the images (of a folder with / at its end), or an "
            "image_id.",
        ),
    ],
    store: StoreOption,
    archive: ArchiveOption,
    reason: Annotated[str, typer.Option("--reason", help="Kept with the tombstone.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Take images out of vectors, pictures, reports and the map, and publish a version without them."""
    from damage_atlas.forget import forget as take_out

    done = take_out(Store(store), archive, uris, reason)
    _print(
        done,
        as_json,
        f"forgotten: {done['images']} images, {done['deleted']} objects deleted; version {done['version']} of "
        f"{archive} is without them. The files themselves are yours to delete.",
    )


@app.command()
def prune(
    store: StoreOption,
    archive: ArchiveOption,
    days: Annotated[float, typer.Option("--days", min=1, help="Runs with a younger stage stay.")] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take away runs that were never published: mark them, and a day later delete what is marked."""
    from damage_atlas.store.retention import prune as pass_over

    done = pass_over(Store(store), archive, days, dry_run=dry_run)
    lines = [
        f"{title}: {', '.join(ids)}"
        for title, ids in (
            ("marked, to be deleted from tomorrow on", done.retired),
            (f"deleted, {done.objects} objects", done.removed),
            ("kept, of unknown age", done.undated),
        )
        if ids
    ]
    _print(asdict(done), as_json, "\n".join(lines) or "nothing to take away")


@app.command()
def check(file: Annotated[Path, typer.Argument(help="An archive file, a settings file or a run.yaml.")]) -> None:
    """Check an archive, settings or run file; misspelt keys are named."""
    text = _read_text(file)
    data = load_yaml(text, file.name)
    keys = set(data) if isinstance(data, dict) else set()
    kind: type[Any] = RunSpec if "run_id" in keys else ArchiveSpec if keys & {"archive", "images"} else Settings
    parse_document(kind, text, file.name)
    console.print(f"{file.name}: a valid {kind.__name__}", highlight=False, markup=False)


@app.command()
def history(
    store: StoreOption,
    archive: ArchiveOption,
    cluster: Annotated[int | None, typer.Option("--cluster", help="What became of this cluster.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The archive's versions, or what became of one cluster, oldest first."""
    from damage_atlas.query import cluster_history
    from damage_atlas.query import history as versions

    if cluster is not None:
        past = cluster_history(Store(store), archive, cluster)
        if as_json:
            _json(past)
            return
        named = [f"cluster {cluster}", past["name"], past["severity"] and f"severity {past['severity']}"]
        console.print(", ".join(part for part in named if part), highlight=False, markup=False)
        _table(past["events"], tuple(past["events"][0]))
        if past["remarks"]:
            _table(past["remarks"], ("said_at", "said_by", "name", "note", "severity"))
        return
    rows = versions(Store(store), archive)
    if as_json:
        _json(rows)
    elif not rows:
        console.print(f"{archive} has no published version in {store}.", highlight=False, markup=False)
    else:
        _table(rows, tuple(rows[0]))


@app.command()
def name(
    cluster: ClusterArgument,
    name: Annotated[str, typer.Argument(help="What to call it; an empty text takes its name away.")],
    store: StoreOption,
    archive: ArchiveOption,
    by: ByOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a cluster a name. It sticks to the cluster's id, whatever version comes."""
    _remark(store, archive, as_json, Remark(cluster_id=cluster, name=name, said_by=by or getpass.getuser()))


@app.command()
def note(
    cluster: ClusterArgument,
    store: StoreOption,
    archive: ArchiveOption,
    text: Annotated[str | None, typer.Argument(help="What to note.")] = None,
    severity: Annotated[
        str | None,
        typer.Option(
            "--severity",
            help="How bad it is, 0 to 5 or a code of the table; it decides what to visit. An empty text takes it away.",
        ),
    ] = None,
    by: ByOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Note something of a cluster, or how severe it is. It sticks to the cluster's id, whatever version comes."""
    from damage_atlas.query import published_run
    from damage_atlas.report.severity import CodeTable

    if severity:
        codes = CodeTable.of(published_run(Store(store), archive).spec.settings.report)
        if codes.of_remark(severity) is None:
            raise InputError(
                f"--severity {severity!r} is neither a grade from 0 to {MAX_GRADE:g} nor in the archive's code table "
                f"({', '.join(sorted(codes.grades)) or 'which is empty'}), so that it would change nothing."
            )
    said = Remark(cluster_id=cluster, note=text, severity=severity, said_by=by or getpass.getuser())
    _remark(store, archive, as_json, said)


def _remark(store: str, archive: str, as_json: bool, remark: Remark) -> None:
    from damage_atlas.store.remarks import add_remark

    number = add_remark(Store(store), archive, remark)
    done = {"archive": archive, "remark": number, **remark.model_dump(mode="json")}
    _print(done, as_json, f"noted as remark {number} of {archive}; reports of later versions show it")


@app.command()
def diff(
    a: Annotated[int, typer.Argument(help="A version.")],
    b: Annotated[int, typer.Argument(help="Another version.")],
    store: StoreOption,
    archive: ArchiveOption,
    as_json: JsonFlag = False,
) -> None:
    """What differs between two versions."""
    from damage_atlas.query import diff as compare

    _print(compare(Store(store), archive, a, b), as_json)


@app.command()
def rollback(
    n: Annotated[int, typer.Argument(help="The version to go back to.")],
    store: StoreOption,
    archive: ArchiveOption,
    as_json: JsonFlag = False,
) -> None:
    """Make an older version's run current again, by a new version record."""
    from damage_atlas.publish import rollback as roll_back
    from damage_atlas.query import published_run

    record = roll_back(published_run(Store(store), archive, n))
    _print(record.model_dump(mode="json"), as_json, f"version {record.version} of {archive} is run {record.run_id}")


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="NAME@VERSION: a version that was trained.")],
    store: StoreOption,
    because: Annotated[str, typer.Option("--because", help="What is written down.")] = "by hand",
    as_json: JsonFlag = False,
) -> None:
    """Make a version of a model the current one: runs that begin from now on use it."""
    from damage_atlas.store import promote_model, resolve_model

    if "@" not in model:
        raise InputError(f"{model!r} names no version; wanted is NAME@VERSION.")
    card = resolve_model(Store(store), model)
    done = promote_model(Store(store), card.model, card.version, because)
    _print(done.model_dump(mode="json"), as_json, f"{card.model}@{card.version} is the current version of {card.model}")


@app.command()
def verify(
    store: StoreOption,
    archive: ArchiveOption,
    version: Annotated[int | None, typer.Option("--version", help="By default the current one.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Re-hash everything a version holds."""
    from damage_atlas.publish import verify_run
    from damage_atlas.query import published_run

    record = read_version(Store(store), archive, version)
    problems = verify_run(published_run(Store(store), archive, record.version))
    _print(
        {"archive": archive, "version": record.version, "problems": problems},
        as_json,
        "\n".join(problems) or f"version {record.version} of {archive}: every digest matches",
    )
    if problems:
        raise typer.Exit(1)


WorkOption = Annotated[Path, typer.Option("--work", help="Folder of the experiment; what it holds is not repeated.")]
SeedsOption = Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from 0 on.")]


@app.command()
def subclasses(
    images: ImagesOption,
    work: WorkOption,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant", help="A known one, or 'NAME: train.instance_weight=1 …'; the first is the reference."
        ),
    ] = None,
    pairings: Annotated[int | None, typer.Option("--pairings", min=1, help="Ways to merge; by default all.")] = None,
    merge: Annotated[
        list[str] | None,
        typer.Option("--merge", help="A merging of one's own instead: deck_crack,deck_non_crack; once for each group."),
    ] = None,
    seeds: SeedsOption = 1,
    spec: SpecOption = None,
    set_: SetOption = None,
    groups: GroupsOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Experiment: merge classes, train on what is merged, and look how well the classes are found again."""
    from damage_atlas.experiments import data, plots
    from damage_atlas.experiments import subclasses as experiment

    settings = _settings(spec, set_, groups, Settings())
    variants = dict(map(experiment.parse_variant, variant or list(experiment.VARIANTS)))
    scores = (
        "coarse_knn",
        "fine_knn",
        "fine_ari",
        "fine_ari_eps_3",
        "fine_ari_dbscan_in_embedding",
        "fine_ari_k_means",
        "within_ami_subtype",
        "within_ami_group",
    )
    with data.open_images(images, work, settings) as (found, pixels):
        ways = (
            [experiment.parse_merges(merge, found.classes)] if merge else experiment.pairings(found.classes)[:pairings]
        )
        plan = experiment.Plan(settings, variants, ways, range(seeds))
        rows = experiment.recover_subclasses(found, pixels, plan, work / "subclasses.jsonl", _say_row)
    known = [score for score in scores if any(score in row for row in rows)]
    (work / "subclasses.png").write_bytes(plots.draw_scores(rows, "variant", known))
    _print_experiment(experiment.summarise(rows, list(variants), known), as_json)


@app.command()
def baselines(
    images: ImagesOption,
    work: WorkOption,
    method: Annotated[list[str] | None, typer.Option("--method", help="One of them; by default all.")] = None,
    rates: Annotated[str, typer.Option("--rates", help="Learning rates that each method is tuned over.")] = "1e-4,1e-3",
    seeds: SeedsOption = 1,
    spec: SpecOption = None,
    set_: SetOption = None,
    groups: GroupsOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Experiment: held-out scores of our loss beside other losses on the same network, and without learning."""
    from damage_atlas.experiments import baselines as experiment
    from damage_atlas.experiments import data, plots
    from damage_atlas.experiments.subclasses import summarise

    settings = _settings(spec, set_, groups, Settings())
    offered = experiment.methods_for(settings.train)
    methods = method or list(offered)
    if unknown := [name for name in methods if name not in offered]:
        raise InputError(f"--method {unknown[0]} is not known; {', '.join(offered)} are.")
    try:
        learning_rates = [float(rate) for rate in rates.split(",")]
    except ValueError as error:
        raise InputError(f"--rates {rates}: expected numbers with commas between them.") from error
    scores = (
        "knn_accuracy", "linear_accuracy", "recall_at_1", "recall_at_10", "map_at_r",
        "damage_recall_at_95_specificity", "damage_auprc", "label_f1", "f2_ciw", "f1_normal",
    )  # fmt: skip
    with data.open_images(images, work, settings) as (found, pixels):
        rows = experiment.compare_baselines(
            found, pixels, settings.train, methods, range(seeds), learning_rates, work / "baselines.jsonl", _say_row
        )
    known = [score for score in scores if any(score in row for row in rows)]
    (work / "baselines.png").write_bytes(plots.draw_scores(rows, "method", known))
    _print_experiment(summarise(rows, methods, known, "method"), as_json)


@app.command()
def sweep(
    images: ImagesOption,
    work: WorkOption,
    axis: Annotated[
        list[str] | None,
        typer.Option("--axis", help="A known one, or 'learning_rate=1e-4,1e-3'; by default the paper's and more."),
    ] = None,
    seeds: SeedsOption = 1,
    spec: SpecOption = None,
    set_: SetOption = None,
    groups: GroupsOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Experiment: vary one setting of training after another; scores on a validation part of the training split."""
    from damage_atlas.experiments import data, plots
    from damage_atlas.experiments import sweep as experiment
    from damage_atlas.progress import Progress
    from damage_atlas.train import labelled_images

    settings = _settings(spec, set_, groups, Settings())
    axes = experiment.parse_axes(axis or list(experiment.GRIDS))
    run = data.catalogued(images, work, settings)
    trials = experiment.plan_sweep(labelled_images(run), settings, axes, range(seeds))
    rows = []
    with Progress("sweep", "trainings", len(trials)) as progress:
        for row in experiment.sweep(run, trials):
            rows.append(row)
            progress.add(1, note=experiment.in_words(row))
    table = experiment.tabulate(rows, axes)
    (work / "sweep.png").write_bytes(plots.draw_axes(rows, axes, experiment.SCORES))
    if as_json:
        _json(table)
    else:
        _table([experiment.as_text(row) for row in table], ("axis", "value", "runs", *experiment.SCORES))


@app.command()
def dataset(
    name: Annotated[str, typer.Argument(help="severstal, sdnet2018, sewer-ml or coco.")],
    source: Annotated[Path, typer.Argument(help="The folder that it was unpacked to.")],
    out: Annotated[Path, typer.Option("--out", help="The manifest to write.")],
    paper: Annotated[bool, typer.Option("--paper", help="The classes of the paper's experiments alone.")] = False,
    each: Annotated[int | None, typer.Option("--each", min=1, help="At most so many images of each class.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the manifest of a data set as its owners hand it out; its pictures stay where they are."""
    from damage_atlas.datasets import prepare

    prepared = prepare(name, source, out, paper, each)
    if as_json:
        _json(asdict(prepared) | {"images": str(prepared.images), "manifest": str(prepared.manifest)})
        return
    _table([{"label": label, "images": count} for label, count in prepared.classes.items()], ("label", "images"))
    for why, count in prepared.left_out.items():
        console.print(f"left out: {count} {why}", markup=False)
    words = ["damage-atlas", "run", "--images", str(prepared.images), "--store", "STORE"]
    words += [word for setting in prepared.settings for word in ("--set", setting)]
    console.print(shlex.join(words), soft_wrap=True, markup=False, highlight=False)


def _say_row(row: dict[str, Any]) -> None:
    logging.getLogger("damage_atlas").info("%s", json.dumps(row))


def _print_experiment(table: list[dict[str, Any]], as_json: bool) -> None:
    """A column for each name, a line for each score: mean ± half the 95% interval, and the gain over the first name."""
    if as_json:
        _json(table)
        return
    by, runs = list(table[0])[:2]
    scores = dict.fromkeys(key for row in table for key in row if key not in (by, runs) and not key.endswith("_gain"))
    names = tuple(f"{row[by]} ({row[runs]})" for row in table)
    lines = [
        {"score": score} | {n: _mean_text(row, score) for n, row in zip(names, table, strict=True)} for score in scores
    ]
    _table(lines, ("score", *names))


def _mean_text(row: dict[str, Any], score: str) -> str:
    def text(mean: float, half: float | None, sign: str = "") -> str:
        return f"{mean:{sign}.3f}" + ("" if half is None else f" ± {half:.3f}")

    if score not in row:
        return "diverged"
    (mean, half), gain = row[score], row.get(f"{score}_gain")
    return text(mean, half) + (f" ({text(gain[0], gain[1], '+')})" if gain else "")


@app.command()
def failed(run_uri: RunArgument, as_json: JsonFlag = False) -> None:
    """Every quarantined file of a run, with its reason."""
    from damage_atlas.query import failed as quarantined

    rows = quarantined(Run.load(run_uri))
    if as_json:
        _json(rows)
    elif rows:
        _table(rows, ("file", "reason", "detail"))
    else:
        console.print("nothing is quarantined")


@app.command()
def show(run_uri: RunArgument, as_json: JsonFlag = False) -> None:
    """A run at a glance: settings, stages, facts, where its tables lie."""
    from damage_atlas.query import show as glance

    _print(glance(Run.load(run_uri)), as_json)


@app.command()
def doctor(
    store: Annotated[
        str | None, typer.Option("--store", envvar="DAMAGE_ATLAS_STORE", help="The store to look at.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Ray's dashboard, http://HOST:8265; by default the environment's.")
    ] = None,
    airflow: Annotated[
        str | None, typer.Option("--airflow", help="Airflow's API, http://HOST:8080; by default the environment's.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check installation, GPU, store, Ray, Airflow and clocks, and say what to mend; 1 if anything is amiss."""
    from damage_atlas.doctor import examine

    findings = examine(store, ray, airflow)
    sick = [finding for finding in findings if finding.state == "bad"]
    if as_json:
        _json({"ok": not sick, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            sign = {"ok": "ok     ", "bad": "MEND   ", "skipped": "skipped"}[finding.state]
            mend = f"\n        -> {finding.mend}" if finding.mend else ""
            console.print(f"{sign} {finding.says}{mend}", highlight=False, soft_wrap=True, markup=False)
    if sick:
        raise typer.Exit(1)


@app.command()
def metrics(
    store: StoreOption,
    archives: Annotated[
        Path | None,
        typer.Option(
            "--archives", envvar="DAMAGE_ATLAS_ARCHIVES", help="Folder of archive files, for the ages they allow."
        ),
    ] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", help="HOST:PORT to serve them on; by default they are printed once.")
    ] = None,
    every_s: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks at the store.")] = 15,
) -> None:
    """Figures of all archives for Prometheus: images, quarantine, clusters, seconds a stage, age of the version."""
    from damage_atlas.monitor import metrics_text, serve_metrics

    if listen is None:
        print(metrics_text(Store(store), archives), end="")
        return
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _HIGHEST_PORT:
        raise InputError(f"--listen {listen}: give HOST:PORT, for example 127.0.0.1:9108.")
    serve_metrics(Store(store), host.strip("[]"), int(port), every_s, archives)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file.") from error


def _settings(spec: Path | None, assignments: list[str] | None, groups: str | None, defaults: Settings) -> Settings:
    settings = defaults
    if spec is not None:
        settings = parse_document(Settings, _read_text(spec), spec.name)
    assigned = list(assignments or [])
    if groups is not None:
        location = groups if "://" in groups else str(Path(groups).absolute())
        assigned.append(f"catalog.groups={json.dumps(location, ensure_ascii=False)}")
    return with_overrides(settings, assigned)


def _finish(opened: Run, as_json: bool) -> None:
    from damage_atlas.pipeline import run_pipeline, summarize

    for artifact in run_pipeline(opened):
        logging.getLogger("damage_atlas").info("%s: sealed in %.1f s", artifact.stage, artifact.seconds)
    summary = summarize(opened)
    if as_json:
        _json(summary)
    else:
        _print_summary(summary)


def _print_summary(summary: dict[str, Any]) -> None:
    counts = summary["counts"]
    console.print(
        f"version {summary['version']}: {summary['clusters']} clusters ({summary['new_clusters']} new), "
        f"{summary['noise_share']:.1%} noise; {counts['listed']:,} listed = {counts['embedded']:,} embedded + "
        f"{counts['reused']:,} reused + {counts['duplicate']:,} duplicate + {counts['quarantined']:,} quarantined",
        highlight=False,
        soft_wrap=True,
    )
    for alert in summary["alerts"]:
        console.print(f"alert: {alert}", highlight=False, soft_wrap=True, markup=False)
    for name in ("run", "report"):
        console.print(f"{name}: {summary[f'{name}_uri']}", highlight=False, soft_wrap=True, markup=False)
    if "truth" in summary:
        console.print(f"truth: {_truth_text(summary['truth'])}", highlight=False, soft_wrap=True)


def _truth_text(scores: dict[str, Any]) -> str:
    parts = [
        f"agreement with the hidden sub-modes ARI {scores['ari_modes']:.2f}, the predefined classes alone "
        f"{scores['ari_classes']:.2f}",
        f"{scores['confident_modes']} of {scores['modes']} sub-modes in a confident cluster of their own",
    ]
    if scores["planted"]:
        parts.append(f"{scores['in_new_clusters']} of {scores['planted']} images of the new kind in a new cluster")
    if scores["crack_tiles"]:
        parts.append(f"{scores['in_crack_clusters']} of {scores['crack_tiles']} cracked tiles in crack clusters")
    if scores["wrong_status"]:
        parts.append(f"{len(scores['wrong_status'])} files with another status than planted")
    return "; ".join(parts)


def _print_summaries(summaries: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _json(summaries)
    else:
        for summary in summaries:
            _print_summary(summary)


def _print(document: dict[str, Any], as_json: bool, text: str | None = None) -> None:
    if as_json:
        _json(document)
    elif text is not None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    else:
        import yaml

        console.print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), highlight=False, markup=False)


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """A table, uncut: where a terminal is too narrow for it, one line for each value; a pipe gets its full width."""
    table = Table(*columns, box=None, header_style="bold")
    texts = [[("" if row[name] is None else str(row[name])).replace("[", "\\[") for name in columns] for row in rows]
    for cells in texts:
        table.add_row(*cells)
    width = console.measure(table, options=console.options.update(max_width=sys.maxsize)).maximum
    if width <= console.width:
        console.print(table)
    elif not console.is_terminal:
        Console(width=width).print(table)
    else:
        for cells in texts:
            record = Table.grid(padding=(0, 2))
            record.add_column(style="bold")
            record.add_column(overflow="fold")
            for name, cell in zip(columns, cells, strict=True):
                record.add_row(name, cell)
            console.print(record, "")


def _places(rows: list[dict[str, Any]], first: tuple[str, ...], then: tuple[str, ...] = ()) -> None:
    """A table of observations; ``where`` is the tile's box, the place along the asset and the second of the video."""
    units = (("position_m", "{} m"), ("frame_time_s", "{} s"))
    for row in rows:
        parts = [text.format(row[name]) for name, text in units if row[name] is not None]
        if row["tile_x"] is not None:
            parts.insert(0, "{tile_width}x{tile_height}+{tile_x}+{tile_y}".format(**row))
        row["where"] = ", ".join(parts) or None
    _table(rows, (*first, *then, "asset_id", "delivery", "uri", "where"))


def _json(document: Any) -> None:
    # Not through rich: a pipe must get the bytes as they are.
    print(json.dumps(document, indent=1, ensure_ascii=False, default=str))

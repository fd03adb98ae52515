"""The workers on a real Ray of two nodes: they spread, and give what one process gives, to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from damage_atlas.errors import StoreError
from damage_atlas.experiments.sweep import plan_sweep, sweep, tabulate
from damage_atlas.pipeline import run_pipeline, run_stage
from damage_atlas.spec import RunSpec, Settings, TrainSpec, with_overrides
from damage_atlas.store import Run, Store, open_run
from damage_atlas.train import labelled_images
from damage_atlas.train.checkpoints import newest_checkpoint
from infra.local.ray_cluster import LocalRay
from tests.support.line import WHEN_ASKED
from tests.support.s3_server import S3Server, take_away
from tests.support.small_archive import make_labelled
from workers.train import choose_ranks

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

SETTINGS = with_overrides(
    Settings(),
    [
        "train.input_size=32",
        "train.iterations=24",
        "train.batch_size=24",
        "train.learning_rate=0.002",
        "train.checkpoint_every=10",
        "embed.rows_per_part=16",
        "embed.batch_size=8",
        "catalog.in_job_up_to_mib=0",
        "embed.in_job_up_to=0",
        "index.kind=ivf",
        "index.rows_per_part=16",
    ],
)
TABLES = {
    "catalog": ("observations.parquet",),
    "index": ("ids.parquet",),
    "cluster": ("points.parquet", "clusters.parquet", "lineage.parquet"),
    "explain": ("explanations.parquet",),
    "report": ("assets.parquet", "transitions.parquet"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("images") / "labelled")


def open_in(store: Path | str, images: Path | str, *overrides: str) -> Run:
    settings = with_overrides(SETTINGS, list(overrides))
    return open_run(
        Store(store),
        RunSpec(run_id="same", kind="run", archive="small", images=str(images), model="small", settings=settings),
    )


# All stages from one driver: what a job of its own for each adds is tested with two workers. Tasks do all of the work.
ONE_DRIVER = """
import importlib, sys
from damage_atlas.store import Run
from workers import on_ray
from workers.logs import log_to_stdout

on_ray.HEAD_START_S = 0

log_to_stdout()
run = Run.load(sys.argv[1])
for stage in run.spec.stages:
    importlib.import_module(f"workers.{stage}").work(run)
"""


HEAD_START = """
import json, os, time
from workers import on_ray

on_ray.HEAD_START_S = 1

def work(part):
    time.sleep(0.2)
    return part, os.getpid()

few = list(on_ray.map_with_head_start(work, [7]))
many = list(on_ray.map_with_head_start(work, range(40)))
print(json.dumps([os.getpid(), few, many]))
"""


REFUSED = """
from damage_atlas.errors import StoreError
from workers import embed, job

def refused(batch, run_uri):
    raise StoreError("access denied", retryable=False)

embed.decode_rows = refused
job.run_job("embed", embed.work)
"""


def run_python(cluster: LocalRay, *arguments: str, expect: int = 0) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **cluster.client_env},
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == expect, result.stdout[-4000:]
    return result.stdout


def work(cluster: LocalRay, stage: str, run_uri: str, expect: int = 0) -> str:
    return run_python(cluster, "-m", f"workers.{stage}", run_uri, expect=expect)


@pytest.fixture(scope="module")
def one_process(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = open_in(tmp_path_factory.mktemp("local"), images)
    list(run_pipeline(run))
    return run


@pytest.fixture(scope="module")
def on_ray(cluster: LocalRay, images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, str]]:
    run = open_in(tmp_path_factory.mktemp("ray-store"), images)
    return run, {stage: work(cluster, stage, run.uri) for stage in run.spec.stages}


def assert_equal_results(a: Run, b: Run) -> None:
    for stage, names in TABLES.items():
        for name in names:
            assert a.read_table(stage, name).equals(b.read_table(stage, name)), f"{stage}/{name}"
    for name in ("model.safetensors", "reference.parquet"):
        digests = [run.artifact("train").outputs[name].sha256 for run in (a, b)]
        assert digests[0] == digests[1], name
    vectors = [
        sorted(o.sha256 for name, o in run.artifact("embed").outputs.items() if name.startswith("vectors-"))
        for run in (a, b)
    ]
    assert vectors[0] == vectors[1]
    assert a.read("index", "index.faiss") == b.read("index", "index.faiss")


@pytest.mark.parametrize(
    ("shards", "wanted", "gpus", "ranks"),
    [(2, 2, 0, 2), (2, 2, 1, 1), (2, 2, 8, 2), (4, 4, 3, 2), (6, 6, 4, 3), (4, 1, 2, 1)],
)
def test_as_many_ranks_as_there_are_gpus_with_whole_shards(shards: int, wanted: int, gpus: int, ranks: int) -> None:
    spec = TrainSpec(shards=shards, workers=wanted, batch_size=96)
    assert choose_ranks(spec, gpus) == ranks


def test_two_workers_give_what_one_process_gives(one_process: Run, on_ray: tuple[Run, dict[str, str]]) -> None:
    assert_equal_results(one_process, on_ray[0])


@WHEN_ASKED
@pytest.mark.parametrize(
    "overrides", [("train.workers=1", "embed.actors=1"), ("catalog.in_job_up_to_mib=9", "embed.in_job_up_to=9999")]
)
def test_one_worker_and_none_give_what_one_process_gives(
    one_process: Run, cluster: LocalRay, images: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    run = open_in(tmp_path, images, *overrides)
    run_python(cluster, "-c", ONE_DRIVER, run.uri)
    assert_equal_results(one_process, run)


@WHEN_ASKED
def test_four_workers_give_what_one_gives(images: Path, tmp_path: Path) -> None:
    four = open_in(tmp_path / "four", images, *workers(4))
    one = open_in(tmp_path / "one", images, *workers(1))
    with LocalRay(tmp_path / "ray", nodes=4, cpus_per_node=1, env=python_path()) as cluster:
        log = run_python(cluster, "-c", ONE_DRIVER, four.uri)
        run_python(cluster, "-c", ONE_DRIVER, one.uri)
    assert "by 4 actors on 4 nodes" in log, log[-3000:]
    assert_equal_results(one, four)


@WHEN_ASKED
def test_an_elastic_training_takes_in_what_comes_and_goes_on_without_what_leaves(tmp_path: Path, images: Path) -> None:
    """One node of one CPU, then two, then one again: the weights are those of one process."""
    long = ("train.iterations=6000", "train.checkpoint_every=100", "train.evaluate_every=6000")
    alone, elastic = (
        open_in(tmp_path / name, images, *long, *more)
        for name, more in (("alone", ()), ("elastic", ("train.fewest_workers=1",)))
    )
    for stage in ("catalog", "train"):
        run_stage(alone, stage)
    run_stage(elastic, "catalog")
    with (
        LocalRay(tmp_path / "ray", nodes=1, cpus_per_node=1, env=python_path()) as cluster,
        ThreadPoolExecutor(1) as pool,
    ):
        log = pool.submit(work, cluster, "train", elastic.uri)
        wait_for_checkpoint(elastic, 200)
        cluster.bring_up_worker(2)
        wait_for_checkpoint(elastic, 4000)
        cluster.kill_node(2)
        said = log.result()
    assert "rank 0 of 1 on" in said and "rank 1 of 2 on" in said, said[-3000:]
    assert said.rindex("rank 0 of 1 on") > said.index("rank 1 of 2 on"), "it did not go on alone"
    digests = [run.artifact("train").outputs["model.safetensors"].sha256 for run in (alone, elastic)]
    assert digests[0] == digests[1]


def wait_for_checkpoint(run: Run, iteration: int) -> None:
    folder, deadline = f"models/{run.spec.model}/{run.spec.run_id}/checkpoints", time.monotonic() + 300
    while newest_checkpoint(run.store, folder) < iteration:
        assert time.monotonic() < deadline, f"no checkpoint at iteration {iteration}"
        time.sleep(0.2)


@WHEN_ASKED
@pytest.mark.s3
def test_four_workers_give_what_one_gives_on_an_unsteady_server(
    unsteady_bucket: str, s3_server: S3Server, tmp_path: Path
) -> None:
    labelled, images = make_labelled(tmp_path / "labelled", each=667), f"s3://{unsteady_bucket}/images"
    pictures = Store(images)
    for file in labelled.rglob("*.png"):
        pictures.create_same(file.relative_to(labelled).as_posix(), file.read_bytes())
    four = open_in(f"s3://{unsteady_bucket}/four", images, *workers(4))
    one = open_in(f"s3://{unsteady_bucket}/one", images, *workers(1))
    env = {**os.environ, **python_path()}
    with LocalRay(tmp_path / "ray", nodes=4, cpus_per_node=1, env=env) as cluster:
        with ThreadPoolExecutor(1) as pool:
            log = pool.submit(run_python, cluster, "-c", ONE_DRIVER, four.uri)
            take_away(s3_server, four.store, once_there="archives/small/vectors")
            assert "by 4 actors on 4 nodes" in log.result(), log.result()[-3000:]
        run_python(cluster, "-c", ONE_DRIVER, one.uri)
    assert_equal_results(one, four)


def workers(number: int) -> tuple[str, ...]:
    return "train.shards=4", f"train.workers={number}", f"embed.actors={number}"


def python_path() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {"PYTHONPATH": os.pathsep.join([str(root), str(root / "lib")])}


def test_training_had_two_ranks_on_two_nodes(on_ray: tuple[Run, dict[str, str]]) -> None:
    log = on_ray[1]["train"]
    nodes = {line.split("on node ")[1][:8] for line in log.splitlines() if "on node " in line}
    assert "rank 0 of 2" in log and "rank 1 of 2" in log and len(nodes) == 2, log[-3000:]


# What the worker does, but for one iteration, and beside it the same iteration by one process alone.
GRADIENTS = """
import json, sys, tempfile
from pathlib import Path

import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from damage_atlas.images import Limits
from damage_atlas.network import DamageNet
from damage_atlas.store import Run
from damage_atlas.train import labelled_images
from damage_atlas.train.data import Pixels
from damage_atlas.train.loop import Alone, Trainer, TrainingState, make_optimizer
from workers.on_ray import connect
from workers.train import RankExchange

AUGMENTATION = {"crop_side": 0.7, "shift": 0.1, "instance_weight": 1.0, "instance_images": 12}
NONE = {"erasing_probability": 0.0, "flips": False, "brightness": 0.0}


def gradient(run, exchange, dtype, changes):
    spec, images = run.spec.settings.train.model_copy(update=changes), labelled_images(run)
    torch.manual_seed(0)
    network = DamageNet(spec.input_size).to(dtype)
    state = TrainingState(network, make_optimizer(network, spec))
    with Pixels(images, run.spec.images, spec.input_size, Limits.of(run.spec.settings.catalog)) as pixels:
        made = Trainer(
            state, pixels, images.training_rows, images.training_codes, spec, exchange, images.label_sets
        )
        made.run(1, lambda _: None)
    return torch.cat([p.grad.flatten() for p in made.parameters])


def on_rank(config):
    run, exchange, found = Run.load(config["run_uri"]), RankExchange(), {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        for changed, changes in (("augmented", AUGMENTATION), ("as they are", NONE)):
            mine, alone = (gradient(run, each, dtype, changes) for each in (exchange, Alone()))
            found[f"{name}, {changed}"] = float((mine - alone).norm() / alone.norm())
    file = Path(config["folder"]) / f"{exchange.rank}-of-{exchange.workers}.json"
    file.write_text(json.dumps(found))


connect()
for workers in (2, 3):
    TorchTrainer(
        on_rank,
        train_loop_config={"run_uri": sys.argv[1], "folder": sys.argv[2]},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=tempfile.mkdtemp(dir=sys.argv[2])),
    ).fit()
"""


@WHEN_ASKED
def test_two_and_three_workers_give_the_gradients_of_one(cluster: LocalRay, images: Path, tmp_path: Path) -> None:
    run = open_in(tmp_path / "store", images, "train.shards=6", "train.precision=float32")
    run_stage(run, "catalog")
    run_python(cluster, "-c", GRADIENTS, run.uri, str(tmp_path))
    found = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert sorted(found) == ["0-of-2", "0-of-3", "1-of-2", "1-of-3", "2-of-3"]
    for distances in found.values():
        assert len(distances) == 4
        for name, distance in distances.items():
            assert distance < (1e-5 if name.startswith("float32") else 1e-10), (name, distance)


def test_a_sweep_by_ray_tune_measures_what_one_process_measures_and_nothing_twice(
    cluster: LocalRay, images: Path, tmp_path: Path
) -> None:
    quick = "train.iterations=6"
    here, there = (open_in(tmp_path / name, images, quick) for name in ("here", "there"))
    for run in (here, there):
        run_stage(run, "catalog")
    axes = {"temperature": ("0.1", "0.3"), "embedding_size": ("16",)}
    expected = list(sweep(here, plan_sweep(labelled_images(here), here.spec.settings, axes, range(1))))
    asked = ("-m", "workers.sweep", there.uri, "--axis", "temperature=0.1,0.3", "--axis", "embedding_size=16")
    printed = run_python(cluster, *asked)
    result = json.loads(printed.split("RAY_JOB_RESULT ")[1].splitlines()[0])
    assert result["trainings"] == 2 and "temperature 0.3, embedding_size 16, seed 0: kNN" in printed
    place = result["table"].removeprefix(f"{there.store.root}/")
    table = json.loads(there.store.read(place))
    speed = "images_per_s"
    assert [{k: v for k, v in row.items() if k != speed} for row in table] == [
        {k: list(v) if isinstance(v, tuple) else v for k, v in row.items() if k != speed}
        for row in tabulate(expected, axes)
    ]
    assert there.store.exists(place.replace(".json", ".png"))
    assert "2 of 2 trainings" in run_python(cluster, *asked), "known already"


@WHEN_ASKED
def test_embedding_had_two_actors_on_two_nodes(on_ray: tuple[Run, dict[str, str]]) -> None:
    assert "by 2 actors on 2 nodes" in on_ray[1]["embed"], on_ray[1]["embed"][-3000:]


def test_the_index_was_filled_in_shards_on_two_nodes(on_ray: tuple[Run, dict[str, str]]) -> None:
    assert on_ray[0].artifact("index").facts["kind"] == "ivf"
    assert "5 parts on 2 nodes" in on_ray[1]["index"], on_ray[1]["index"][-3000:]


def test_a_job_begins_by_itself_and_tasks_go_on(cluster: LocalRay) -> None:
    job, few, many = json.loads(run_python(cluster, "-c", HEAD_START).splitlines()[-1])
    assert few == [[7, job]]
    assert [part for part, _ in many] == list(range(40))
    by_job = [pid == job for _, pid in many]
    assert 1 <= sum(by_job) < 40 and by_job == sorted(by_job, reverse=True)


def test_the_last_lines_say_how_it_went(on_ray: tuple[Run, dict[str, str]]) -> None:
    line = next(line for line in on_ray[1]["publish"].splitlines() if line.startswith("RAY_JOB_RESULT "))
    result = json.loads(line.removeprefix("RAY_JOB_RESULT "))
    assert result["version"] == 1 and result["report"].endswith("report/index.html")
    line = next(line for line in on_ray[1]["embed"].splitlines() if line.startswith("RAY_JOB_RESULT "))
    ledger = json.loads(line.removeprefix("RAY_JOB_RESULT "))["ledger"]
    assert ledger == on_ray[0].artifact("embed").facts["ledger"]
    assert f"embed: listed {ledger['listed']}, embedded {ledger['embedded']}" in on_ray[1]["embed"]


def test_a_sealed_stage_is_not_done_again(cluster: LocalRay, on_ray: tuple[Run, dict[str, str]]) -> None:
    before = on_ray[0].artifact("embed")
    assert "complete already" in work(cluster, "embed", on_ray[0].uri)
    assert on_ray[0].artifact("embed") == before


def test_bad_input_is_said_to_be_beyond_retrying(cluster: LocalRay, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = open_in(tmp_path / "store", tmp_path / "empty")
    log = work(cluster, "catalog", run.uri, expect=2)
    line = next(line for line in log.splitlines() if line.startswith("RAY_JOB_FAILURE "))
    assert json.loads(line.removeprefix("RAY_JOB_FAILURE "))["retryable"] is False
    assert "Traceback" not in log


def test_an_error_in_the_embedding_says_what_and_whether_to_try_again(
    cluster: LocalRay, on_ray: tuple[Run, dict[str, str]], tmp_path: Path
) -> None:
    """Ray Data wraps what its tasks raise; a store that refuses must not be asked again and again."""
    assert on_ray[0].store.folder is not None
    store = Store(shutil.copytree(on_ray[0].store.folder, tmp_path / "store"))
    for stage in ("embed", "index", "cluster", "explain", "report", "publish"):
        shutil.rmtree(tmp_path / "store" / on_ray[0].key / stage)
    shutil.rmtree(tmp_path / "store" / "archives" / "small" / "vectors")
    log = run_python(cluster, "-c", REFUSED, store.uri(on_ray[0].key), expect=StoreError("").exit_code)
    line = next(line for line in log.splitlines() if line.startswith("RAY_JOB_FAILURE "))
    assert json.loads(line.removeprefix("RAY_JOB_FAILURE ")) == {"retryable": False, "message": "access denied"}


def test_one_class_fails_in_one_line_and_no_rank_is_started(cluster: LocalRay, tmp_path: Path) -> None:
    make_labelled(tmp_path / "images", each=4)
    run = open_in(tmp_path / "store", tmp_path / "images" / "across")
    work(cluster, "catalog", run.uri)
    log = work(cluster, "train", run.uri, expect=2)
    line = next(line for line in log.splitlines() if line.startswith("RAY_JOB_FAILURE "))
    assert "rank 0 of" not in log
    assert "at least two classes" in json.loads(line.removeprefix("RAY_JOB_FAILURE "))["message"]


def test_a_misspelt_backbone_fails_in_one_line_and_no_rank_is_started(cluster: LocalRay, tmp_path: Path) -> None:
    misspelt = ["train.network=custom", "train.module=no_such_package:Net"]
    run = open_in(tmp_path / "store", make_labelled(tmp_path / "images", each=4), *misspelt)
    work(cluster, "catalog", run.uri)
    log = work(cluster, "train", run.uri, expect=2)
    line = next(line for line in log.splitlines() if line.startswith("RAY_JOB_FAILURE "))
    assert "rank 0 of" not in log
    assert "DAMAGE_ATLAS_MODULES=no_such_package" in json.loads(line.removeprefix("RAY_JOB_FAILURE "))["message"]

"""The training loop's pure parts, and what it does when a run goes wrong."""

from __future__ import annotations

import functools
import io
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load, save, save_file
from torch import Tensor
from torch._dynamo.exc import InternalTorchDynamoError

from damage_atlas.errors import InputError, TrainingDivergedError
from damage_atlas.images import Limits
from damage_atlas.network import DamageNet, load_network
from damage_atlas.pipeline import run_stage
from damage_atlas.spec import Settings, TrainSpec, with_overrides
from damage_atlas.store import Run, Store, load_model_card, resolve_model, start_run
from damage_atlas.train import labelled_images, loop, train_model, train_rank
from damage_atlas.train.data import Pixels
from damage_atlas.train.evaluate import embed_rows
from damage_atlas.train.loop import (
    Alone,
    Exchange,
    Trainer,
    TrainingState,
    learning_rate,
    make_optimizer,
    refuse_diverged_weights,
)
from damage_atlas.train.losses import MNPairLoss, instance_loss
from damage_atlas.train.mixup import mixup_loss
from damage_atlas.train.sampling import ExplicitTuples
from damage_atlas.train.start import new_network
from tests.support.backbone import SmallBackbone
from tests.support.small_archive import make_labelled

pytestmark = pytest.mark.usefixtures("own_backbones")


def test_the_rate_is_constant_unless_asked() -> None:
    spec = TrainSpec(learning_rate=0.01, iterations=50)
    assert {learning_rate(spec, i) for i in range(50)} == {0.01}


def test_a_cosine_starts_at_the_rate_and_ends_near_nothing() -> None:
    spec = TrainSpec(learning_rate=0.01, iterations=50, schedule="cosine")
    rates = [learning_rate(spec, i) for i in range(50)]
    assert rates[0] == 0.01 and rates[25] == pytest.approx(0.005) and rates[-1] < 2e-5
    assert rates == sorted(rates, reverse=True)


def test_a_training_that_diverges_says_so_and_registers_nothing(tmp_path: Path) -> None:
    settings = with_overrides(
        Settings(), ["train.input_size=32", "train.iterations=30", "train.batch_size=12", "train.learning_rate=1e30"]
    )
    store = Store(tmp_path / "store")
    asked = {"kind": "train", "archive": "a", "model": "m", "settings": settings}
    run = start_run(store, images=str(make_labelled(tmp_path / "images", each=6)), **asked)  # type: ignore[arg-type]
    run_stage(run, "catalog")
    with pytest.raises(InputError, match=r"diverged.*Lower train\.learning_rate"):
        run_stage(run, "train")
    assert not list(store.list("models/m/promotions"))
    again = start_run(store, images=run.spec.images, **asked)  # type: ignore[arg-type]
    assert again.key != run.key, "what was refused is not continued"


def test_a_last_step_that_diverges_is_told_from_the_weights() -> None:
    weights = [torch.ones(3), torch.ones(2, 2)]
    refuse_diverged_weights(weights, TrainSpec())
    for bad in (float("nan"), float("inf")):
        weights[1][0, 1] = bad
        with pytest.raises(TrainingDivergedError, match=r"not finite.*Lower train\.learning_rate"):
            refuse_diverged_weights(weights, TrainSpec())


def training_run(folder: Path, images: Path, *assignments: str) -> Run:
    small = ["train.input_size=32", "train.iterations=12", "train.batch_size=24", "train.checkpoint_every=5"]
    settings = with_overrides(Settings(), [*small, "train.precision=float32", *assignments])
    run = start_run(Store(folder), images=str(images), kind="train", archive="a", model="m", settings=settings)
    run_stage(run, "catalog")
    return run


def weights(run: Run) -> str:
    return run.artifact("train").outputs["model.safetensors"].sha256


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("images") / "images", each=8)


class Rank:
    """One of several exchanges for as many threads: each waits for the others' tensors."""

    def __init__(self, rank: int, slots: list[Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.workers, self.slots, self.barrier = rank, len(slots), slots, barrier

    def _all(self, tensor: Tensor) -> list[Tensor]:
        self.slots[self.rank] = tensor
        self.barrier.wait(timeout=60)
        tensors = list(self.slots)
        self.barrier.wait(timeout=60)
        return tensors

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat(self._all(tensor))

    def add(self, tensor: Tensor) -> Tensor:
        first, *others = self._all(tensor)
        return functools.reduce(torch.add, others, first)


def ranks(workers: int) -> list[Rank]:
    slots, barrier = [torch.empty(0)] * workers, threading.Barrier(workers)
    return [Rank(rank, slots, barrier) for rank in range(workers)]


def run_together(trainers: list[Trainer], until: int) -> None:
    threads = [threading.Thread(target=each.run, args=(until, lambda _: None)) for each in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


HARD_TUPLES = ("train.sampler=tuples", "train.n=2", "train.hard_classes=true")


@pytest.mark.parametrize(
    "assignments",
    [
        pytest.param(("train.sampler=tuples", "train.instance_weight=1", "train.instance_images=24"), id="tuples"),
        pytest.param(("train.sampler=tuples", "train.loss=n_pair"), id="tuples of N-pair"),
        pytest.param(HARD_TUPLES, id="hard tuples"),
        pytest.param(("train.loss=supcon", "train.hard_negatives=1", "train.multi_label=true"), id="balanced"),
        pytest.param(("train.mixup=0.4", "train.hard_negatives=1", "train.multi_label=true"), id="mixup"),
    ],
)
def test_two_workers_make_the_bits_of_one(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, assignments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(loop, "_CLASSES_EVERY", 4)
    run = training_run(tmp_path, images, *assignments)
    with ExitStack() as stack:
        alone, *together = (trainer(run, exchange, stack) for exchange in (Alone(), *ranks(2)))
        alone.run(12, lambda _: None)
        run_together(together, 12)
    for worker in together:
        for mine, wanted in zip(worker.parameters, alone.parameters, strict=True):
            assert torch.equal(mine, wanted)


NOTHING_CHANGED = ("train.erasing_probability=0", "train.flips=false", "train.brightness=0")
SHIFTED_TWICE = ("train.crop_side=0.7", "train.shift=0.1", "train.instance_weight=1", "train.instance_images=12")


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    "assignments",
    [
        pytest.param(NOTHING_CHANGED, id="as they are"),
        pytest.param(SHIFTED_TWICE, id="augmented"),
        pytest.param((*SHIFTED_TWICE, "train.rotation=30", "train.contrast=0.3", "train.mixup=0.5"), id="mixed"),
    ],
)
def test_several_workers_make_the_gradients_of_one(
    tmp_path: Path, images: Path, assignments: tuple[str, ...], dtype: torch.dtype, tolerance: float, workers: int
) -> None:
    """And one is what autograd makes of the whole batch at once, not cut into shards."""
    run = training_run(tmp_path, images, "train.shards=6", "train.workers=1", *assignments)
    with ExitStack() as stack:
        alone, *together = (trainer(run, exchange, stack, dtype) for exchange in (Alone(), *ranks(workers)))
        whole = gradient_of_the_whole(alone)
        alone.run(1, lambda _: None)
        run_together(together, 1)
        following = gradient_of_the_whole(alone)
    for mine in (alone, *together):
        assert relative_distance(gradient(mine), whole) < tolerance
    assert relative_distance(following, whole) > 100 * tolerance, "another batch has another gradient"


def test_mixup_of_weight_0_is_not_even_asked(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed, default = (training_run(tmp_path / weight, images, f"train.mixup={weight}") for weight in ("0.4", "0.0"))
    weightless = training_run(tmp_path / "weightless", images, "train.mixup=0", "train.mixup_alpha=0.3")
    train_model(mixed)
    monkeypatch.setattr(loop, "mixup_loss", None)
    for run in (default, weightless):
        train_model(run)
    assert weights(weightless) == weights(default) != weights(mixed)


def gradient(made: Trainer) -> Tensor:
    parts = [parameter.grad for parameter in made.parameters]
    return torch.cat([part.flatten() for part in parts if part is not None])


def gradient_of_the_whole(made: Trainer) -> Tensor:
    """Of the batch that comes next, all of it through the network and the loss in one graph."""
    shards = made._load(made.state.iteration)
    codes = torch.as_tensor(made.codes[made.batches[made.state.iteration]])
    firsts = [shard[: made.shard_size] for shard in shards]
    embeddings, spec = embed(made, firsts), made.spec
    loss = made.criterion(embeddings, codes)
    if spec.mixup:
        draws = {"seed": spec.seed, "iteration": made.state.iteration}
        loss = loss + spec.mixup * mixup_loss(made.criterion, embeddings, codes, alpha=spec.mixup_alpha, **draws)
    if made.second_views:
        twice, second = ([s[cut] for s in shards] for cut in (slice(made.second_views), slice(made.shard_size, None)))
        views = embed(made, twice), embed(made, second)
        batch = torch.as_tensor(made.batches[made.state.iteration]).split(made.shard_size)
        shown = torch.cat([rows[: made.second_views] for rows in batch])
        assert len(shown.unique()) < len(shown), "no image is there twice, which the loss makes a difference for"
        loss = loss + spec.instance_weight * instance_loss(*views, spec.temperature, shown)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, made.parameters)])


def embed(made: Trainer, shards: list[Tensor]) -> Tensor:
    return made.state.network(made.state.network.prepare(torch.cat(shards)))


def relative_distance(mine: Tensor, wanted: Tensor) -> float:
    return float((mine - wanted).norm() / wanted.norm())


def trainer(run: Run, exchange: Exchange, stack: ExitStack, dtype: torch.dtype = torch.float32) -> Trainer:
    spec, found = run.spec.settings.train, labelled_images(run)
    pixels = stack.enter_context(Pixels(found, run.spec.images, spec.input_size, Limits.of(run.spec.settings.catalog)))
    torch.manual_seed(0)
    network = DamageNet(spec.input_size).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = TrainingState(network, make_optimizer(network, spec))
    return Trainer(state, pixels, found.training_rows, found.training_codes, spec, exchange, found.label_sets)


def test_hard_classes_are_the_same_after_a_stop(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint at iteration 5 lies between two looks for hard classes, at 4 and 8."""
    monkeypatch.setattr(loop, "_CLASSES_EVERY", 4)
    undisturbed, stopped = (training_run(tmp_path / name, images, *HARD_TUPLES) for name in ("one", "two"))
    train_model(undisturbed)

    def stop(state: TrainingState) -> None:
        if state.iteration == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(stopped, stop)
    train_model(stopped)
    assert weights(stopped) == weights(undisturbed)


def test_a_compiled_network_learns_the_same(tmp_path: Path, images: Path) -> None:
    plain, compiled = (training_run(tmp_path / name, images, f"train.compile={name}") for name in ("false", "true"))
    train_model(plain)
    train_model(compiled)
    ours, theirs = (
        load(run.store.read(run.artifact("train").outputs["model.safetensors"].key)) for run in (compiled, plain)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
    assert weights(compiled) != weights(plain), "the same bits: nothing was compiled"


def test_without_a_compiler_a_line_says_so(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here there is one, and torch looks for it once."""

    def compiled(pixels: Tensor) -> Tensor:
        raise InternalTorchDynamoError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda network: compiled)
    with pytest.raises(InputError, match=r"train\.compile: torch cannot compile .*No working C\+\+ compiler found"):
        train_model(training_run(tmp_path, images, "train.compile=true"))


def test_a_worse_model_does_not_replace_the_one_in_use(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = ("train.iterations=60", "train.learning_rate=0.002")
    thrown_about = ("train.iterations=1", "train.learning_rate=1000")
    first = training_run(tmp_path, images, *good)
    assert train_model(first).facts["promoted"] is True
    worse = training_run(tmp_path, images, *thrown_about, "train.seed=1")
    facts = train_model(worse).facts
    assert facts["scores"]["knn_accuracy"] < first.artifact("train").facts["scores"]["knn_accuracy"] - 0.05
    assert facts["promoted"] is False and f"promote m@{worse.spec.run_id}" in facts["kept_back"]
    assert facts["kept_back"] in caplog.text
    assert resolve_model(first.store, "m").version == first.spec.run_id
    never = training_run(tmp_path, images, *good, "train.seed=2", "train.promote=never")
    assert train_model(never).facts["kept_back"] == "train.promote is never"
    as_good = training_run(tmp_path, images, *good, "train.seed=3")
    facts = train_model(as_good).facts
    assert facts["promoted"] is True and facts["compared_with"] == first.spec.run_id
    asked = training_run(tmp_path, images, *thrown_about, "train.seed=4", "train.promote=always")
    assert train_model(asked).facts["promoted"] is True
    assert resolve_model(first.store, "m").version == asked.spec.run_id


def test_every_rank_goes_on_from_the_checkpoint_that_the_first_one_chose(tmp_path: Path, images: Path) -> None:
    """Not from the newest that it finds: a writer that was taken for dead may have added another meanwhile."""
    run = training_run(tmp_path, images)
    for end in (6, 11):  # past the checkpoints at 5 and 10

        def stop(state: TrainingState, end: int = end) -> None:
            if state.iteration == end:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_model(run, stop)

    class Second(Alone):
        rank = 1

        def add(self, tensor: Tensor) -> Tensor:
            return tensor + 5  # what the first rank found

    begun: list[int] = []

    def look(state: TrainingState) -> None:
        begun.append(state.iteration)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_rank(run, Second(), on_iteration=look)
    assert begun == [6]


def test_hard_classes_change_what_is_learnt(tmp_path: Path, images: Path) -> None:
    hard, drawn = (training_run(tmp_path / name, images, *HARD_TUPLES[:count]) for name, count in (("h", 3), ("d", 2)))
    assert len({train_model(run).outputs["model.safetensors"].sha256 for run in (hard, drawn)}) == 2


def test_tuples_count_the_images_they_show(tmp_path: Path, images: Path) -> None:
    run = training_run(tmp_path, images, "train.sampler=tuples")
    # Three classes: M + N - 1 = 5 images a tuple, two whole tuples in each of two shards of 12.
    assert train_model(run).facts["images_seen"] == 12 * 20


def test_tuples_that_do_not_fit_are_refused_before_training(tmp_path: Path, images: Path) -> None:
    run = training_run(tmp_path, images, "train.sampler=tuples", "train.m=40")
    with pytest.raises(InputError, match=r"takes 42 images, a shard has 12"):
        run_stage(run, "train")


@pytest.mark.parametrize(
    ("sampler", "loss", "m", "n"),
    [("tuples", "mn_pair", 5, 5), ("tuples", "n_pair", 2, 5), ("balanced", "mn_pair", 5, 5)],
)
def test_sampler_and_loss_work_with_the_same_m_and_n(sampler: str, loss: str, m: int, n: int) -> None:
    """Also where a batch holds fewer classes than there are."""
    spec = TrainSpec(sampler=sampler, loss=loss, batch_size=9, shards=1, workers=1, input_size=32)  # type: ignore[arg-type]
    codes, label_sets = np.repeat(np.arange(5), 4), np.eye(5, dtype=bool)
    network = DamageNet(32)
    state = TrainingState(network, make_optimizer(network, spec))
    made = Trainer(state, None, np.arange(20), codes, spec, Alone(), label_sets)  # type: ignore[arg-type]
    assert (made.criterion.m, made.criterion.n) == (m, n)
    if isinstance(made.batches, ExplicitTuples):
        assert (made.batches.n_positives, made.batches.n_negatives) == (m - 1, n - 1)


def test_a_batch_with_all_classes_counts_as_before() -> None:
    codes, rows = torch.arange(12) % 3, torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    label_sets = np.array([[True, False], [True, True], [False, True]])
    for labels, multi_label in ((codes, False), (torch.as_tensor(label_sets)[codes], True)):
        m, n = loop.resolve_counts(codes.numpy(), label_sets, TrainSpec(multi_label=multi_label))
        assert torch.equal(MNPairLoss(m=m, n=n)(rows, labels), MNPairLoss()(rows, labels))


@pytest.mark.parametrize("sampler", ["balanced", "tuples"])
def test_labels_that_all_classes_share_leave_no_negatives(sampler: str) -> None:
    spec = TrainSpec(sampler=sampler, multi_label=True)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"train\.multi_label: no two classes"):
        loop.make_batches(np.repeat(np.arange(2), 4), np.array([[True, False], [True, True]]), spec)


def test_hard_classes_of_all_classes_are_no_choice() -> None:
    spec = TrainSpec(sampler="tuples", hard_classes=True, n=3)
    with pytest.raises(InputError, match=r"N = 3 and 3 classes.*Lower train\.n"):
        loop.make_batches(np.repeat(np.arange(3), 4), np.eye(3, dtype=bool), spec)


def test_a_mix_of_labels_is_a_class_of_its_own_unless_asked(tmp_path: Path) -> None:
    folder = make_labelled(tmp_path / "images", each=6)
    (folder / "dots").rename(folder / "across+down")
    mixed, shared = (training_run(tmp_path / name, folder, f"train.multi_label={name}") for name in ("false", "true"))
    found = labelled_images(shared)
    assert found.classes == ["across", "across+down", "down"]
    assert found.label_sets.tolist() == [[True, False], [True, True], [False, True]]
    assert len({train_model(run).outputs["model.safetensors"].sha256 for run in (mixed, shared)}) == 2


BACKBONE = ("train.network=custom", "train.module=tests.support.backbone:SmallBackbone")


@pytest.mark.parametrize(
    "assignments",
    [
        pytest.param(("train.pooling=average",), id="average pooling"),
        pytest.param(("train.network=mixer",), id="mixer"),
        pytest.param((*BACKBONE, "train.module_arguments={width: 5}"), id="backbone"),
    ],
)
def test_a_model_version_holds_the_network_that_was_trained(
    tmp_path: Path, images: Path, assignments: tuple[str, ...]
) -> None:
    run = training_run(tmp_path, images, *assignments)
    train_model(run)
    card = load_model_card(run.store, "m", run.spec.run_id)
    network = load_network(run.store.read(card.weights.key), card.network)
    reference = pq.read_table(io.BytesIO(run.store.read(card.reference.key)))
    found = labelled_images(run)
    with Pixels(found, run.spec.images, 32, Limits.of(run.spec.settings.catalog)) as pixels:
        vectors = embed_rows(network, pixels, np.arange(len(found)), run.spec.settings.train)
    assert np.array_equal(vectors, np.stack(reference["vector"].to_numpy()))


def test_a_backbone_starts_with_the_weights_of_a_file(tmp_path: Path, images: Path) -> None:
    backbone = SmallBackbone()
    file = tmp_path / "backbone.safetensors"
    save_file(backbone.state_dict(), file)
    spec = training_run(tmp_path / "store", images, *BACKBONE, f"train.module_weights={file}").spec.settings.train
    assert torch.equal(new_network(spec).state_dict()["backbone.conv.weight"], backbone.conv.weight)


@pytest.mark.parametrize("content", [None, b"not safetensors", save({"conv.weight": torch.zeros(1)})])
def test_weights_that_are_none_of_the_backbone_s_are_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "backbone.safetensors"
    if content is not None:
        file.write_bytes(content)
    spec = with_overrides(Settings(), [*BACKBONE, f"train.module_weights={file}"]).train
    with pytest.raises(InputError, match=r"train\.module_weights: .*does not hold the weights of tests"):
        new_network(spec)


def test_a_backbone_that_cannot_be_kept_is_refused_before_training() -> None:
    spec = with_overrides(Settings(), [BACKBONE[0], "train.module=tests.support.backbone:TiedBackbone"]).train
    with pytest.raises(InputError, match=r"TiedBackbone cannot be kept as safetensors .*a tensor of its own"):
        new_network(spec)

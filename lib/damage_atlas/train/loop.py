"""The training loop. It knows neither Ray nor Airflow: what differs between one process and several is an ``Exchange``.

A global batch is cut into ``shards``. Each shard is forwarded on its own; all embeddings are gathered and every worker
computes the loss of the whole batch; each shard then runs backward from its own rows of the loss's gradient, and the
shards' gradients are added pairwise in order. That is the gradient of one worker on the whole batch, exactly, with
negatives from all workers, and with two shards its bits do not depend on who computes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from damage_atlas.errors import InputError, TrainingDivergedError
from damage_atlas.network import EmbeddingNet, fixed_threads, resolve_precision
from damage_atlas.spec import TrainSpec
from damage_atlas.train.augment import augment_on
from damage_atlas.train.data import Pixels
from damage_atlas.train.evaluate import embed_rows
from damage_atlas.train.losses import MNPairLoss, instance_loss
from damage_atlas.train.mixup import mixup_loss
from damage_atlas.train.sampling import BalancedBatches, ExplicitTuples, hardest_first

Ints = NDArray[np.int64]

_CLASSES_EVERY = 100  # iterations between two looks for hard classes
_CLASS_IMAGES = 32  # of each class, that its mean is taken of


class Exchange(Protocol):
    """How workers talk: one process alone, or torch.distributed under Ray Train."""

    rank: int
    workers: int

    def gather(self, tensor: Tensor) -> Tensor:
        """The workers' tensors, one after the other along dimension 0."""
        ...

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of the workers' tensors."""
        ...


class Alone:
    """The exchange of a single process."""

    rank = 0
    workers = 1

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def add(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


class Distributed:
    """The exchange of processes that `torch.distributed` has joined, whoever started them.

    Args:
        rank, workers: which of how many this one is.
        group: those that talk, where they are not all that were joined; ranks begin at 0 there as well.
    """

    def __init__(self, rank: int, workers: int, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.workers, self._group = rank, workers, group

    def gather(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors, one after the other."""
        if self.workers == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.workers)]
        dist.all_gather(parts, tensor.contiguous(), group=self._group)
        return torch.cat(parts)

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over ranks; on 2, 4, 8 ... CPUs as a tree over neighbours, which is how shards are added."""
        if self.workers & (self.workers - 1) or tensor.device.type != "cpu":
            dist.all_reduce(tensor, group=self._group)
            return tensor
        step = 1
        while step < self.workers:
            # a + b has the bits of b + a, so that both partners, and in the end all ranks, hold the same ones.
            partner, other = self.rank ^ step, torch.empty_like(tensor)
            talk = ((dist.isend, tensor), (dist.irecv, other))
            asked = [dist.P2POp(how, what, partner, self._group) for how, what in talk]
            for request in dist.batch_isend_irecv(asked):
                request.wait()
            tensor += other
            step *= 2
        return tensor


@dataclass
class TrainingState:
    """All that a training run carries from one iteration to the next."""

    network: EmbeddingNet
    optimizer: torch.optim.Optimizer
    iteration: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    class_means: Tensor | None = None  # C x D, of the iteration that hard classes were last looked for


def make_optimizer(network: nn.Module, spec: TrainSpec) -> torch.optim.Adam:
    """Adam with the paper's decays: gradient 0.9, squared gradient 0.99."""
    return torch.optim.Adam(
        network.parameters(),
        lr=spec.learning_rate,
        betas=(spec.gradient_decay, spec.squared_gradient_decay),
        foreach=True,  # half the time of one tensor after the other, and the same bits; fused has others
    )


def learning_rate(spec: TrainSpec, iteration: int) -> float:
    """The rate at ``iteration``: a function of it alone, so that a run that was stopped goes on with the same."""
    if spec.schedule == "constant":
        return spec.learning_rate
    return spec.learning_rate * (1 + math.cos(math.pi * iteration / spec.iterations)) / 2


def resolve_counts(codes: Ints, label_sets: NDArray[np.bool_], spec: TrainSpec) -> tuple[int, int]:
    """The paper's M and N for images of these class codes: what sampler and loss both work with.

    Where ``train.m`` and ``train.n`` are null it is the number of classes of the training split, not of a batch; for
    the loss over all pairs of images with several labels, the number of labels.
    """
    all_pairs = spec.sampler == "balanced"
    classes = label_sets.shape[1] if spec.multi_label and all_pairs else len(np.unique(codes))
    return spec.m or (2 if spec.loss == "n_pair" and not all_pairs else classes), spec.n or classes


def make_batches(codes: Ints, label_sets: NDArray[np.bool_], spec: TrainSpec) -> BalancedBatches | ExplicitTuples:
    """The sampler that ``train.sampler`` names, for images of these class codes.

    Args:
        label_sets: which labels each class carries, classes x labels; used by ``train.multi_label``.

    Raises:
        InputError: it cannot make a batch, or not with what the settings ask for.
    """
    apart_CC = ~np.eye(len(label_sets), dtype=bool)
    if spec.multi_label:
        counts = label_sets.astype(np.int64)
        apart_CC = counts @ counts.T == 0
        if not apart_CC.any():
            raise InputError(
                "train.multi_label: no two classes are without a common label, so there are no negatives. Set it to "
                "false, which makes each mix of labels a class of its own, or add images of something else."
            )
    if spec.sampler == "balanced":
        return BalancedBatches(codes, spec.batch_size, spec.seed)
    m, n = resolve_counts(codes, label_sets, spec)
    if spec.hard_classes and n >= len(label_sets):
        raise InputError(
            f"train.hard_classes chooses N - 1 of the other classes; with N = {n} and {len(label_sets)} classes there "
            "is nothing to choose. Lower train.n below the number of classes, or leave hard_classes out."
        )
    return ExplicitTuples(codes, spec.batch_size, spec.seed, m=m, n=n, shards=spec.shards, apart_CC=apart_CC)


class Trainer:
    """Runs iterations on this worker's shards.

    Args:
        state: network and optimizer; the network's device decides where the work is done.
        pixels: of the training images.
        rows: the training split's rows of ``pixels``.
        codes: class code of each of these rows, from 0 on without gaps.
        label_sets: which labels each class carries, classes x labels; used by ``train.multi_label``.

    Raises:
        InputError: ``train.sampler`` cannot make a batch.
    """

    def __init__(
        self,
        state: TrainingState,
        pixels: Pixels,
        rows: Ints,
        codes: Ints,
        spec: TrainSpec,
        exchange: Exchange,
        label_sets: NDArray[np.bool_],
    ) -> None:
        self.state, self.pixels, self.rows, self.codes, self.spec, self.exchange = (
            state,
            pixels,
            rows,
            codes,
            spec,
            exchange,
        )
        # Compiled or not, it is the same module below: its weights and its checkpoints know nothing of it.
        self.network = torch.compile(state.network) if spec.compile else state.network
        self.device = next(state.network.parameters()).device
        self.parameters = [p for p in state.network.parameters() if p.requires_grad]
        self.dtype = resolve_precision(spec.precision, self.device)
        self.batches = make_batches(codes, label_sets, spec)
        m, n = resolve_counts(codes, label_sets, spec)
        self.criterion = MNPairLoss(spec.temperature, spec.positive_weight, spec.loss, m, n, spec.hard_negatives)
        self.label_sets = torch.as_tensor(label_sets, device=self.device)
        pairs = self.batches.pairs
        self.pairs = None if pairs is None else tuple(torch.as_tensor(places, device=self.device) for places in pairs)
        self._order_classes()
        each = spec.shards // exchange.workers
        self.shards = range(exchange.rank * each, (exchange.rank + 1) * each)
        self.shard_size = self.batches.batch_size // spec.shards
        # Of each shard, the first so many pictures are shown twice, changed differently each time.
        self.second_views = min(spec.instance_images // spec.shards, self.shard_size) if spec.instance_weight else 0

    def run(self, until: int, on_iteration: Callable[[TrainingState], None]) -> None:
        """Run iterations up to ``until``; the next batch is decoded and augmented while one is computed."""
        lanes = len(self.shards) if self.device.type == "cpu" else 1
        with (
            fixed_threads(self.spec.threads_per_shard),
            ThreadPoolExecutor(
                lanes, initializer=torch.set_num_threads, initargs=(self.spec.threads_per_shard,)
            ) as pool,
            ThreadPoolExecutor(1) as loader,
        ):
            upcoming: Future[list[Tensor]] | None = None
            while self.state.iteration < until:
                started = time.monotonic()
                if self._looks_for_classes(self.state.iteration):
                    self._take_class_means()
                inputs = upcoming.result() if upcoming else self._load(self.state.iteration)
                following = self.state.iteration + 1
                # What a batch holds is known ahead, unless the network has to be asked first.
                may_load = following < until and not self._looks_for_classes(following)
                upcoming = loader.submit(self._load, following) if may_load else None
                row = self._step(inputs, pool)
                self.state.seconds += time.monotonic() - started
                self.state.history.append(row | {"seconds": self.state.seconds})
                on_iteration(self.state)
        # The last step's weights are in no loss.
        refuse_divergence(
            torch.stack([p.detach().sum() for p in self.parameters]).sum(), self.state.iteration, self.spec
        )

    def _looks_for_classes(self, iteration: int) -> bool:
        return self.spec.hard_classes and iteration % _CLASSES_EVERY == 0

    def _take_class_means(self) -> None:
        """Mean embeddings of the classes as the network has them now; those of the first worker count for all."""
        means_CD = torch.zeros(len(self.label_sets), self.spec.embedding_size, device=self.device)
        if self.exchange.rank == 0:
            self.state.network.eval()
            for code in range(len(means_CD)):
                rows = np.random.default_rng([self.spec.seed, code]).permutation(self.rows[self.codes == code])
                vectors = embed_rows(self.state.network, self.pixels, rows[:_CLASS_IMAGES], self.spec)
                means_CD[code] = torch.as_tensor(vectors.mean(axis=0))
        self.state.class_means = self.exchange.add(means_CD)
        self._order_classes()

    def _order_classes(self) -> None:
        if isinstance(self.batches, ExplicitTuples) and self.state.class_means is not None:
            self.batches.class_order = hardest_first(self.state.class_means.cpu().numpy())

    def _load(self, iteration: int) -> list[Tensor]:
        batch = self.batches[iteration]
        inputs = []
        for shard in self.shards:
            first = shard * self.shard_size
            pictures = self.pixels[self.rows[batch[first : first + self.shard_size]]]
            views = [
                augment_on(self.device, self.spec, shown, iteration=iteration, first_position=first, view=view)
                for view, shown in enumerate((pictures, pictures[: self.second_views]))
            ]
            inputs.append(torch.cat(views))
        return inputs

    def _forward(self, pixels: Tensor) -> Tensor:
        images = self.state.network.prepare(pixels.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            try:
                embeddings: Tensor = self.network(images)
            except RuntimeError as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                raise InputError(
                    f"train.compile: torch cannot compile the network here ({' '.join(str(error).split())[:200]}). "
                    "Install a C++ compiler, or leave train.compile out."
                ) from error
        return embeddings

    def _step(self, inputs: list[Tensor], pool: ThreadPoolExecutor) -> dict[str, Any]:
        state, spec = self.state, self.spec
        state.network.train()
        embeddings = list(pool.map(self._forward, inputs))
        # Shards lie one after the other, each with its first views before its second ones.
        gathered = self.exchange.gather(torch.cat([e.detach() for e in embeddings])).requires_grad_()
        batch = self.batches[state.iteration]
        labels = torch.as_tensor(self.codes[batch], device=self.device)
        shards = gathered.view(spec.shards, self.shard_size + self.second_views, -1)
        first = shards[:, : self.shard_size].flatten(0, 1)
        named = self.label_sets[labels] if spec.multi_label else labels
        loss = self.criterion(first, named, self.pairs)
        if spec.mixup:
            loss = loss + spec.mixup * mixup_loss(
                self.criterion, first, named, alpha=spec.mixup_alpha, seed=spec.seed, iteration=state.iteration
            )
        if self.second_views:
            twice, second = shards[:, : self.second_views].flatten(0, 1), shards[:, self.shard_size :].flatten(0, 1)
            rows = torch.as_tensor(batch, device=self.device).view(spec.shards, self.shard_size)
            shown = rows[:, : self.second_views].flatten()
            loss = loss + spec.instance_weight * instance_loss(twice, second, spec.temperature, shown)
        refuse_divergence(loss, state.iteration, spec)
        (gradient,) = torch.autograd.grad(loss, gathered)
        rows_each = self.shard_size + self.second_views
        own = gradient[self.shards.start * rows_each : self.shards.stop * rows_each].split(rows_each)
        gradients = list(pool.map(self._backward, embeddings, own))
        total = self.exchange.add(_pairwise_sum(gradients))
        for parameter, part in zip(self.parameters, total.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(spec, state.iteration)
        state.optimizer.step()
        state.iteration += 1
        positive, negative = _mean_cosines(first.detach(), labels)
        return {
            "iteration": state.iteration,
            "images_seen": state.iteration * (self.batches.batch_size + self.second_views * spec.shards),
            "loss": float(loss.detach()),
            "positive_cosine": positive,
            "negative_cosine": negative,
            "knn_accuracy": None,
        }

    def _backward(self, embeddings: Tensor, gradient: Tensor) -> Tensor:
        # grad(), not backward(): shards on threads must not add into the same .grad in an order of their own.
        # A backbone may carry layers that its feature maps do not pass through: their gradients are 0.
        parts = torch.autograd.grad(embeddings, self.parameters, gradient, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])


def refuse_divergence(loss: Tensor, iteration: int, spec: TrainSpec) -> None:
    """Raise TrainingDivergedError unless the loss of the step after ``iteration`` others is finite."""
    if not torch.isfinite(loss):
        raise TrainingDivergedError(
            f"training diverged: the loss is {float(loss.detach())} at iteration {iteration + 1}. Lower "
            f"train.learning_rate (now {spec.learning_rate:g}) and start again."
        )


def refuse_diverged_weights(parameters: Iterable[Tensor], spec: TrainSpec) -> None:
    """Raise TrainingDivergedError unless all weights are finite: those of the last step are in no loss."""
    if not all(torch.isfinite(weights).all() for weights in parameters):
        raise TrainingDivergedError(
            "training diverged: the last step has left weights that are not finite. Lower train.learning_rate (now "
            f"{spec.learning_rate:g}) and start again."
        )


def _pairwise_sum(tensors: list[Tensor]) -> Tensor:
    # As a tree over consecutive shards: workers then hold whole branches, and the sum's bits stay the same.
    while len(tensors) > 1:
        pairs = [a + b for a, b in zip(tensors[::2], tensors[1::2], strict=False)]
        tensors = pairs + tensors[len(pairs) * 2 :]
    return tensors[0]


def _mean_cosines(unit_BD: Tensor, labels_B: Tensor) -> tuple[float, float]:
    similarities = unit_BD @ unit_BD.T
    same = labels_B[:, None] == labels_B[None, :]
    pairs = ~torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
    return float(similarities[same & pairs].mean()), float(similarities[~same].mean())

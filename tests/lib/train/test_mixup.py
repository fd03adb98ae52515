"""The loss of mixed pairs against its definition, written as one would say it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from damage_atlas.errors import SpecError
from damage_atlas.spec import Settings, TrainSpec, with_overrides
from damage_atlas.train.losses import MNPairLoss
from damage_atlas.train.mixup import _STREAM, _draw, mixup_loss
from tests.lib.train.test_losses import (
    LABEL_SETS,
    assert_equal_to_ten_digits,
    random_embeddings,
    same_class,
    shared_share,
)

DRAWS = {"seed": 3, "iteration": 7}
LABELS = [
    pytest.param([0, 0, 1, 1, 2, 2], id="one positive each"),
    pytest.param([0, 1, 2, 0, 1, 2, 0, 1, 0], id="several"),
    pytest.param([0, 0, 0, 1, 1, 2], id="one class has one image"),
    pytest.param([5, 5, 5, 9, 9], id="two classes"),
]


def slow_mixup(
    embeddings: Tensor,
    labels: list[object],
    likeness: object = same_class,
    *,
    tau: float = 0.3,
    nu: float = 0.15,
    m: int,
    n: int,
    beta: float = 0.0,
    alpha: float = 2.0,
) -> Tensor:
    rng = np.random.default_rng([3, 7, _STREAM])
    count = len(labels)
    places, lambdas = rng.random((count, count)), rng.beta(alpha, alpha, (count, count))
    unit = [e / e.dot(e).sqrt() for e in embeddings]
    losses = []
    for i in range(count):
        weight = [likeness(labels[i], label) for label in labels]  # type: ignore[operator]
        near = [j for j in range(count) if j != i and weight[j] > 0]
        far = [j for j in range(count) if weight[j] == 0]
        if not near or not far:
            continue
        mixes = []
        for j in far:
            share, positive = float(lambdas[i, j]), near[int(places[i, j] * len(near))]
            mixed = share * unit[positive] + (1 - share) * unit[j]
            mixes.append((share * weight[positive], 1 - share, unit[i].dot(mixed) / tau))
        p = nu * (m - 1) * sum(y * s.exp() for y, _, s in mixes) / sum(y for y, _, _ in mixes)
        hardness = sum(y * (beta * s).exp() for _, y, s in mixes)
        q = (1 - nu) * (n - 1) * sum(y * (beta * s).exp() * s.exp() for _, y, s in mixes) / hardness
        losses.append(-(p / (p + q)).log())
    return sum(losses, embeddings.sum() * 0) / max(len(losses), 1)


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.0), (0.4, 0.0), (2.0, 1.5)])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("tau", "nu"), [(0.3, 0.15), (0.1, 0.3), (0.04, 0.1)])
def test_loss_and_gradient_equal_the_slow_version(
    labels: list[object], tau: float, nu: float, alpha: float, beta: float
) -> None:
    embeddings, classes = random_embeddings(len(labels)), len(set(labels))
    slow = slow_mixup(embeddings, labels, tau=tau, nu=nu, m=classes, n=classes, alpha=alpha, beta=beta)
    criterion = MNPairLoss(tau, nu, hard_negatives=beta)
    assert_equal_to_ten_digits(
        mixup_loss(criterion, embeddings, torch.tensor(labels), alpha=alpha, **DRAWS), slow, embeddings
    )


def test_m_and_n_scale_the_sums_and_several_labels_weigh_by_what_they_share() -> None:
    names = ["crack", "rust", "spalling"]
    carried = torch.tensor([[name in labels for name in names] for labels in LABEL_SETS])
    embeddings = random_embeddings(len(LABEL_SETS))
    slow = slow_mixup(embeddings, list(LABEL_SETS), shared_share, m=5, n=9)
    fast = mixup_loss(MNPairLoss(m=5, n=9), embeddings, carried, alpha=2.0, **DRAWS)
    assert_equal_to_ten_digits(fast, slow, embeddings)


def test_chosen_are_positives_and_lambda_is_beta() -> None:
    labels = torch.arange(90) % 3
    positive_BR = (labels[:, None] == labels[None, :]).double().fill_diagonal_(0)
    chosen_BR, lambda_BR = _draw(positive_BR, 2.0, np.random.default_rng(0))
    assert (positive_BR.gather(1, chosen_BR) == 1).all()
    counts = torch.zeros(90, 90).scatter_add_(1, chosen_BR, torch.ones(90, 90))
    others = counts[positive_BR > 0]
    assert others.mean() == pytest.approx(90 / 29) and others.std() < 2.2, "all of them, evenly"
    # Beta(2, 2): mean 1/2, variance 1/20.
    assert float(lambda_BR.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(lambda_BR.var()) == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize("other", [{"seed": 4}, {"iteration": 8}])
def test_draws_depend_on_seed_and_iteration_alone(other: dict[str, int]) -> None:
    embeddings, labels = random_embeddings(12), torch.arange(12) % 3
    here, again, there = (
        mixup_loss(MNPairLoss(), embeddings, labels, alpha=2.0, **draws).item()
        for draws in (DRAWS, DRAWS, DRAWS | other)
    )
    assert here == again != there


@pytest.mark.parametrize("alpha", [0.01, 2.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["opposite", "all the same", "random"])
def test_a_small_tau_leaves_it_finite(shape: str, dtype: torch.dtype, alpha: float) -> None:
    labels = torch.arange(16) % 2
    rows = {
        "opposite": functional.one_hot(torch.zeros(16, dtype=torch.long), 4) * (1.0 - 2 * labels[:, None]),
        "all the same": torch.ones(16, 4),
        "random": torch.randn(16, 4, generator=torch.Generator().manual_seed(0)),
    }[shape]
    embeddings = rows.to(dtype).requires_grad_()
    loss = mixup_loss(MNPairLoss(0.01), embeddings, labels, alpha=alpha, **DRAWS)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all() and loss.dtype == torch.float32


@pytest.mark.parametrize("labels", [[], [0], [0, 0, 0], [0, 1, 2]])
def test_without_anchors_there_is_nothing_to_learn(labels: list[int]) -> None:
    embeddings = random_embeddings(len(labels))
    loss = mixup_loss(MNPairLoss(m=2, n=2), embeddings, torch.tensor(labels, dtype=torch.long), alpha=2.0, **DRAWS)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert loss.item() == 0 and not gradient.any()


def test_by_itself_it_brings_classes_together() -> None:
    labels = torch.arange(24) % 3
    embeddings = random_embeddings(24)
    optimizer = torch.optim.Adam([embeddings], lr=0.05)
    for iteration in range(150):
        optimizer.zero_grad()
        mixup_loss(MNPairLoss(), embeddings, labels, alpha=2.0, seed=0, iteration=iteration).backward()
        optimizer.step()
    unit, same = functional.normalize(embeddings.detach()), labels[:, None] == labels
    cosines = unit @ unit.T
    assert cosines[same].mean() > 0.8 and cosines[~same].mean() < -0.2


@pytest.mark.parametrize("form", ["literal", "n_pair", "supcon", "mean_of_logs"])
def test_other_forms_are_refused(form: str) -> None:
    with pytest.raises(ValueError, match=f"mn_pair.*not {form}"):
        mixup_loss(MNPairLoss(form=form), random_embeddings(4), torch.tensor([0, 0, 1, 1]), alpha=2.0, **DRAWS)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=f"mixup is defined for the loss mn_pair, not for {form}"):
        with_overrides(Settings(), ["train.mixup=0.4", f"train.loss={form}"])


def test_tuples_are_refused_and_ranges_checked() -> None:
    with pytest.raises(SpecError, match="set sampler to balanced"):
        with_overrides(Settings(), ["train.mixup=0.4", "train.sampler=tuples"])
    for assignment in ("mixup=-0.1", "mixup_alpha=0"):
        with pytest.raises(SpecError, match=rf"train\.{assignment.split('=')[0]}"):
            with_overrides(Settings(), [f"train.{assignment}"])
    assert TrainSpec().mixup == 0

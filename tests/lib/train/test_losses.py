"""The loss and its gradient against the definition written as one would say it."""

from __future__ import annotations

import math

import pytest
import torch

from damage_atlas.train.losses import MNPairLoss, instance_loss


def slow_loss(embeddings: list[list[float]], labels: list[int], tau: float, nu: float, form: str) -> float:
    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    classes = len(set(labels))
    losses = []
    for i, anchor in enumerate(embeddings):
        near = [
            math.exp(cosine(anchor, e) / tau) for j, e in enumerate(embeddings) if j != i and labels[j] == labels[i]
        ]
        far = [math.exp(cosine(anchor, e) / tau) for j, e in enumerate(embeddings) if labels[j] != labels[i]]
        if not near or not far:
            continue
        p = nu * (classes - 1) * sum(near) / len(near)
        q = (1 - nu) * (classes - 1) * sum(far) / len(far)
        losses.append((p if form == "literal" else 0.0) - math.log(p / (p + q)))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("form", ["mn_pair", "literal"])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2], [5, 5, 5, 9]])
@pytest.mark.parametrize(("tau", "nu"), [(0.3, 0.15), (0.1, 0.3), (0.5, 0.1)])
def test_loss_and_gradient_equal_the_slow_version(form: str, labels: list[int], tau: float, nu: float) -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(len(labels), 4, dtype=torch.float64, requires_grad=True)
    criterion = MNPairLoss(tau, nu, form)  # type: ignore[arg-type]
    loss = criterion(embeddings, torch.tensor(labels))
    rows = embeddings.detach().tolist()
    assert loss.item() == pytest.approx(slow_loss(rows, labels, tau, nu, form), rel=1e-10)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    # Central differences of the slow version; h balances truncation against rounding.
    h = 1e-5
    for i in range(len(labels)):
        for d in range(4):
            up, down = [r[:] for r in rows], [r[:] for r in rows]
            up[i][d] += h
            down[i][d] -= h
            slope = (slow_loss(up, labels, tau, nu, form) - slow_loss(down, labels, tau, nu, form)) / (2 * h)
            assert float(gradient[i, d]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def slow_torch_loss(embeddings: torch.Tensor, labels: list[int], tau: float, nu: float, literal: bool) -> torch.Tensor:
    """The definition by loops over scalars that autograd follows: for gradients to ten digits."""
    unit = [e / e.dot(e).sqrt() for e in embeddings]
    losses = []
    m = len(set(labels))
    for i in range(len(labels)):
        near = [(unit[i].dot(unit[j]) / tau).exp() for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        far = [(unit[i].dot(unit[j]) / tau).exp() for j in range(len(labels)) if labels[j] != labels[i]]
        if near and far:
            p = nu * (m - 1) * sum(near[1:], near[0]) / len(near)
            q = (1 - nu) * (m - 1) * sum(far[1:], far[0]) / len(far)
            losses.append((p if literal else 0 * p) - (p / (p + q)).log())
    return sum(losses[1:], losses[0]) / len(losses)


@pytest.mark.parametrize("literal", [False, True])
def test_gradient_equals_the_slow_one_to_ten_digits(literal: bool) -> None:
    torch.manual_seed(1)
    labels = [0, 1, 2, 0, 1, 2, 2, 0]
    embeddings = torch.randn(8, 16, dtype=torch.float64, requires_grad=True)
    criterion = MNPairLoss(0.3, 0.15, "literal" if literal else "mn_pair")
    (fast,) = torch.autograd.grad(criterion(embeddings, torch.tensor(labels)), embeddings)
    (slow,) = torch.autograd.grad(slow_torch_loss(embeddings, labels, 0.3, 0.15, literal), embeddings)
    assert float((fast - slow).norm() / slow.norm()) < 1e-10


@pytest.mark.parametrize("labels", [[0], [0, 0], [0, 1], [0, 0, 0]])
def test_without_a_pair_of_each_kind_the_loss_is_zero(labels: list[int]) -> None:
    embeddings = torch.randn(len(labels), 4, requires_grad=True)
    loss = MNPairLoss()(embeddings, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0 and embeddings.grad is not None and torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("tau", [0.01, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numerically_safe(tau: float, dtype: torch.dtype) -> None:
    embeddings = torch.eye(4, dtype=dtype).repeat_interleave(2, 0).requires_grad_()
    loss = MNPairLoss(temperature=tau)(embeddings, torch.arange(4).repeat(2))
    loss.backward()
    assert torch.isfinite(loss) and embeddings.grad is not None and torch.isfinite(embeddings.grad).all()


def test_literal_equation_keeps_positives_apart() -> None:
    """Its minimum in P is (-Q + sqrt(Q^2 + 4Q)) / 2 < 1: positives settle at a cosine below 0.24."""
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(8)
    cosines = {}
    for form in ("literal", "mn_pair"):
        points = torch.randn(32, 16, requires_grad=True)
        optimizer = torch.optim.Adam([points], lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            MNPairLoss(form=form)(points, labels).backward()  # type: ignore[arg-type]
            optimizer.step()
        unit = torch.nn.functional.normalize(points.detach(), dim=1)
        same = (labels[:, None] == labels) & ~torch.eye(32, dtype=torch.bool)
        cosines[form] = float((unit @ unit.T)[same].mean())
    assert cosines["literal"] < 0.3 < 0.9 < cosines["mn_pair"]


def test_instance_loss_and_its_gradient_equal_the_slow_version() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    views = [e / e.dot(e).sqrt() for e in embeddings]
    terms = []
    for i in range(6):
        weights = {j: (views[i].dot(views[j]) / 0.5).exp() for j in range(6) if j != i}
        terms.append(-(weights[(i + 3) % 6] / sum(weights.values())).log())
    slow = sum(terms) / 6
    (slow_gradient,) = torch.autograd.grad(slow, embeddings)
    fast = instance_loss(embeddings[:3], embeddings[3:], 0.5)
    (gradient,) = torch.autograd.grad(fast, embeddings)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-10)
    assert float((gradient - slow_gradient).norm() / slow_gradient.norm()) < 1e-10

"""The losses and their gradients against the definitions written as one would say them."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses as library
from pytorch_metric_learning.miners import BatchHardMiner, MultiSimilarityMiner
from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer, SumReducer
from pytorch_metric_learning.regularizers import LpRegularizer
from torch import Tensor

from damage_atlas.train.losses import Form, MNPairLoss, instance_loss, jaccard_index

FORMS = get_args(Form)
LABELS = [
    pytest.param([0, 0, 1, 1, 2, 2], id="pairs"),
    pytest.param([0, 0, 0, 1, 1, 2], id="one class has one image"),
    pytest.param([5, 5, 5, 9], id="two classes"),
]
LABEL_SETS = [{"crack"}, {"crack", "spalling"}, {"spalling"}, set(), {"rust"}, set(), {"crack", "spalling", "rust"}]


def same_class(a: object, b: object) -> float:
    return float(a == b)


def shared_share(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0


def slow_loss(
    embeddings: Tensor,
    labels: list[object],
    likeness: object = same_class,
    *,
    tau: float = 0.3,
    nu: float = 0.15,
    form: str = "mn_pair",
    m: int,
    n: int,
    beta: float = 0.0,
) -> Tensor:
    """Loops over scalars that autograd follows: for values and gradients to ten digits."""
    unit = [e / e.dot(e).sqrt() for e in embeddings]
    zero = embeddings.sum() * 0
    losses = []
    for i in range(len(labels)):
        s = [unit[i].dot(other) / tau for other in unit]
        weight = [likeness(labels[i], label) for label in labels]  # type: ignore[operator]
        near = [(weight[j], s[j]) for j in range(len(s)) if j != i and weight[j] > 0]
        far = [s[j] for j in range(len(s)) if weight[j] == 0]
        if not near or not far:
            continue
        share = sum(w for w, _ in near)
        mean_weight = sum((beta * s_far).exp() for s_far in far) / len(far)
        far_mean = sum((beta * s_far).exp() / mean_weight * s_far.exp() for s_far in far) / len(far)
        q = (1 - nu) * (n - 1) * far_mean
        p = nu * (m - 1) * sum(w * s_near.exp() for w, s_near in near) / share
        if form == "mn_pair":
            loss = -(p / (p + q)).log()
        elif form == "literal":
            loss = p - (p / (p + q)).log()
        else:
            loss = zero
            for w, s_near in near:
                if form == "mean_of_logs":
                    one = nu * (m - 1) * s_near.exp()
                    term = one / (one + q)
                elif form == "n_pair":
                    term = s_near.exp() / (s_near.exp() + (n - 1) * far_mean)
                else:
                    term = s_near.exp() / (sum(other.exp() for _, other in near) + len(far) * far_mean)
                loss = loss - w / share * term.log()
        losses.append(loss)
    return sum(losses, zero) / max(len(losses), 1)


def assert_equal_to_ten_digits(fast: Tensor, slow: Tensor, embeddings: Tensor) -> None:
    assert fast.item() == pytest.approx(slow.item(), rel=1e-10)
    (fast_gradient,) = torch.autograd.grad(fast, embeddings)
    (slow_gradient,) = torch.autograd.grad(slow, embeddings)
    assert float((fast_gradient - slow_gradient).norm() / slow_gradient.norm()) < 1e-10


def random_embeddings(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("tau", "nu"), [(0.3, 0.15), (0.1, 0.3), (0.04, 0.1)])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_equal_the_slow_version(
    form: Form, labels: list[object], tau: float, nu: float, beta: float
) -> None:
    embeddings = random_embeddings(len(labels))
    classes = len(set(labels))
    slow = slow_loss(embeddings, labels, tau=tau, nu=nu, form=form, m=classes, n=classes, beta=beta)
    fast = MNPairLoss(tau, nu, form, hard_negatives=beta)(embeddings, torch.tensor(labels))
    assert_equal_to_ten_digits(fast, slow, embeddings)


@pytest.mark.parametrize("form", FORMS)
def test_m_and_n_scale_the_sums(form: Form) -> None:
    labels: list[object] = [0, 0, 1, 1, 2, 2]
    embeddings = random_embeddings(6)
    slow = slow_loss(embeddings, labels, form=form, m=5, n=9)
    assert_equal_to_ten_digits(MNPairLoss(form=form, m=5, n=9)(embeddings, torch.tensor(labels)), slow, embeddings)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_several_labels_weigh_by_what_they_share(form: Form, beta: float) -> None:
    names = ["crack", "rust", "spalling"]
    carried = torch.tensor([[name in labels for name in names] for labels in LABEL_SETS])
    embeddings = random_embeddings(len(LABEL_SETS))
    # Three classes, and that of the images that carry none.
    slow = slow_loss(embeddings, list(LABEL_SETS), shared_share, form=form, m=4, n=4, beta=beta)
    fast = MNPairLoss(form=form, hard_negatives=beta)(embeddings, carried)
    assert_equal_to_ten_digits(fast, slow, embeddings)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sampled_from(FORMS))
@settings(deadline=None)
def test_one_label_each_is_the_same_written_either_way(codes: list[int], form: Form) -> None:
    embeddings, labels = random_embeddings(len(codes)), torch.tensor(codes)
    criterion = MNPairLoss(form=form)
    one_hot = torch.nn.functional.one_hot(labels, 4)
    assert torch.equal(criterion(embeddings, labels), criterion(embeddings, one_hot))


@given(st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=8))
@settings(deadline=None)
def test_jaccard_index_is_that_of_sets(label_sets: list[set[int]]) -> None:
    carried = torch.tensor([[code in labels for code in range(4)] for labels in label_sets])
    slow = [[len(a & b) / len(a | b) if a | b else 1.0 for b in label_sets] for a in label_sets]
    assert jaccard_index(carried, carried).tolist() == slow


@given(st.lists(st.integers(0, 4), min_size=1, max_size=10), st.sampled_from(FORMS), st.floats(0.01, 1.0))
@settings(deadline=None)
def test_any_labels_give_a_finite_loss_that_does_not_depend_on_their_order(
    codes: list[int], form: Form, tau: float
) -> None:
    embeddings, labels = random_embeddings(len(codes)).float().detach().requires_grad_(), torch.tensor(codes)
    criterion = MNPairLoss(tau, form=form, hard_negatives=0.5)
    loss = criterion(embeddings, labels)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    back = torch.arange(len(codes)).flip(0)
    assert criterion(embeddings[back], labels[back]).item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)


def test_strength_0_of_hard_negatives_is_the_default_to_the_last_bit() -> None:
    embeddings, labels = random_embeddings(24).float(), torch.arange(24) % 5
    assert torch.equal(MNPairLoss(hard_negatives=0.0)(embeddings, labels), MNPairLoss()(embeddings, labels))


def test_the_strength_of_hard_negatives_moves_the_gradient_to_the_nearest() -> None:
    anchor, positive = [1.0, 0.0], [0.9, 0.3]
    points = torch.tensor([anchor, positive, [0.8, 0.6], [-1.0, 0.1]], dtype=torch.float64)
    shares = []
    for beta in (0.0, 1.0, 4.0):
        far = points[2:].clone().requires_grad_()
        pairs = tuple(torch.tensor(rows) for rows in ([0], [1], [0, 0], [2, 3]))
        loss = MNPairLoss(m=2, n=3, hard_negatives=beta)(torch.cat([points[:2], far]), indices_tuple=pairs)
        (gradient,) = torch.autograd.grad(loss, far)
        shares.append(float(gradient[0].norm() / gradient.norm(dim=1).sum()))
    assert shares == sorted(shares) and shares[-1] > shares[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([0], id="one image"),
        pytest.param([0, 0, 0], id="one class"),
        pytest.param([0, 1, 2], id="one image a class"),
        pytest.param([[0, 0], [0, 0]], id="nothing carried"),
    ],
)
def test_without_a_pair_of_each_kind_the_loss_is_zero(form: Form, labels: list[object]) -> None:
    embeddings = torch.randn(len(labels), 4, requires_grad=True)
    loss = MNPairLoss(form=form)(embeddings, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0 and embeddings.grad is not None and bool((embeddings.grad == 0).all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tau", [0.01, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("swapped", [False, True])
def test_numerically_safe(form: Form, tau: float, dtype: torch.dtype, swapped: bool) -> None:
    """At the extremes: positives equal and negatives orthogonal, and the other way round."""
    embeddings = torch.eye(4, dtype=dtype).repeat_interleave(2, 0).requires_grad_()
    labels = torch.arange(4).repeat(2) if swapped else torch.arange(4).repeat_interleave(2)
    loss = MNPairLoss(tau, form=form, hard_negatives=1.0)(embeddings, labels)
    loss.backward()
    assert torch.isfinite(loss) and embeddings.grad is not None and torch.isfinite(embeddings.grad).all()
    # Adam squares it.
    assert torch.isfinite(embeddings.grad.float().square()).all()


def test_autocast_does_not_round_the_cosines() -> None:
    embeddings, labels = torch.randn(32, 16), torch.arange(32) % 4
    plain = MNPairLoss(0.01)(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(MNPairLoss(0.01)(embeddings, labels), plain)


def test_pairs_named_by_hand_are_the_papers_tuples() -> None:
    """Two tuples of an anchor, two positives and two negatives: equation (5) without its extra term."""
    embeddings = random_embeddings(10, seed=3)
    a1, p, a2, n = [0, 0, 5, 5], [1, 2, 6, 7], [0, 0, 5, 5], [3, 4, 8, 9]
    unit = [e / e.dot(e).sqrt() for e in embeddings]
    losses = []
    for anchor in (0, 5):
        s = [(unit[anchor].dot(unit[anchor + j]) / 0.3).exp() for j in range(1, 5)]
        near, far = 0.15 * (s[0] + s[1]), 0.85 * (s[2] + s[3])
        losses.append(-(near / (near + far)).log())
    pairs = tuple(torch.tensor(rows) for rows in (a1, p, a2, n))
    fast = MNPairLoss(m=3, n=3)(embeddings, indices_tuple=pairs)
    assert_equal_to_ten_digits(fast, (losses[0] + losses[1]) / 2, embeddings)


class TestComposition:
    """With the parts of pytorch-metric-learning."""

    labels = torch.arange(16) % 4

    def test_supcon_is_the_library_s(self) -> None:
        embeddings = random_embeddings(16)
        theirs = library.SupConLoss(temperature=0.1)(embeddings, self.labels)
        assert_equal_to_ten_digits(MNPairLoss(0.1, form="supcon")(embeddings, self.labels), theirs, embeddings)

    @pytest.mark.parametrize("miner", [MultiSimilarityMiner(), BatchHardMiner()])
    def test_a_miner_s_pairs_are_the_pairs_that_count(self, miner: torch.nn.Module) -> None:
        embeddings = random_embeddings(16)
        mined = miner(embeddings, self.labels)
        loss = MNPairLoss()(embeddings, self.labels, mined)
        a1, p, a2, n = mined if len(mined) == 4 else (mined[0], mined[1], mined[0], mined[2])
        unit = torch.nn.functional.normalize(embeddings, dim=1)
        losses = []
        for anchor in range(16):
            near = {int(j) for i, j in zip(a1, p, strict=True) if i == anchor}
            far = {int(j) for i, j in zip(a2, n, strict=True) if i == anchor}
            if near and far:
                mean = [sum((unit[anchor].dot(unit[j]) / 0.3).exp() for j in rows) / len(rows) for rows in (near, far)]
                losses.append((1 + 0.85 * mean[1] / (0.15 * mean[0])).log())
        assert_equal_to_ten_digits(loss, sum(losses[1:], losses[0]) / len(losses), embeddings)

    def test_reducers_take_its_elements(self) -> None:
        embeddings, labels = random_embeddings(16), self.labels
        plain = MNPairLoss()(embeddings, labels)
        for reducer, factor in ((MeanReducer(), 1), (AvgNonZeroReducer(), 1), (SumReducer(), 16)):
            assert MNPairLoss(reducer=reducer)(embeddings, labels).item() == pytest.approx(factor * plain.item())

    def test_references_stand_in_for_the_batch(self) -> None:
        """The batch against itself, each image left out by naming the pairs."""
        embeddings = random_embeddings(16)
        same = self.labels[:, None] == self.labels
        pairs = (*torch.where(same & ~torch.eye(16, dtype=torch.bool)), *torch.where(~same))
        references = embeddings.detach().clone()
        loss = MNPairLoss()(embeddings, self.labels, pairs, references, self.labels)
        assert loss.item() == pytest.approx(MNPairLoss()(embeddings, self.labels).item(), rel=1e-12)

    def test_references_without_named_pairs(self) -> None:
        anchors, references = random_embeddings(4), random_embeddings(8, seed=1)
        criterion = MNPairLoss()
        labels, reference_labels = torch.arange(4) % 2, torch.arange(8) % 2
        loss = criterion(anchors, labels, ref_emb=references, ref_labels=reference_labels)
        unit = [torch.nn.functional.normalize(e, dim=1) for e in (anchors, references)]
        s = (unit[0] @ unit[1].T / 0.3).exp()
        same = labels[:, None] == reference_labels
        p, q = 0.15 * (s * same).sum(1) / 4, 0.85 * (s * ~same).sum(1) / 4
        assert loss.item() == pytest.approx((1 + q / p).log().mean().item(), rel=1e-12)

    def test_a_regularizer_adds_its_term(self) -> None:
        embeddings = random_embeddings(16)
        criterion = MNPairLoss(embedding_regularizer=LpRegularizer(), embedding_reg_weight=0.5)
        wanted = MNPairLoss()(embeddings, self.labels).item() + 0.5 * embeddings.norm(dim=1).mean().item()
        assert criterion(embeddings, self.labels).item() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be above 0"),
        ({"positive_weight": 1}, "positive_weight between 0 and 1"),
        ({"hard_negatives": -1}, "hard_negatives at least 0"),
        ({"form": "triplet"}, "'triplet'; mn_pair, n_pair, supcon"),
        ({"m": 1}, "at least 2"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MNPairLoss(**arguments)  # type: ignore[arg-type]


def test_input_that_does_not_fit_is_refused() -> None:
    embeddings, pairs = torch.randn(4, 3), (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"\(3,\) do not fit 4"):
        MNPairLoss()(embeddings, torch.arange(3))
    with pytest.raises(ValueError, match="either labels or indices_tuple"):
        MNPairLoss()(embeddings)
    with pytest.raises(ValueError, match="give m and n"):
        MNPairLoss()(embeddings, indices_tuple=pairs)


def predicted_literal_cosine(classes: int, each: int, tau: float, nu: float) -> float:
    """Where equation (5) as printed settles: docs/method.md, errata."""
    r = (each - 1) / ((classes - 1) * each)
    low, high = -1.0, 1.0
    for _ in range(60):
        cosine = (low + high) / 2
        p = nu * (classes - 1) * math.exp(cosine / tau)
        q = (1 - nu) * (classes - 1) * math.exp(-(1 + (each - 1) * cosine) / ((classes - 1) * each) / tau)
        low, high = (low, cosine) if p * p + q * p > (1 + r) * q else (cosine, high)
    return low


@pytest.mark.parametrize(("tau", "nu"), [(0.3, 0.15), (0.1, 0.3), (0.5, 0.1)])
@pytest.mark.parametrize(("classes", "each"), [(4, 8), (2, 8), (3, 6)])
def test_literal_settles_where_it_is_predicted(classes: int, each: int, tau: float, nu: float) -> None:
    torch.manual_seed(0)
    labels = torch.arange(classes).repeat(each)
    points = torch.randn(len(labels), 32, requires_grad=True)
    optimizer = torch.optim.Adam([points], lr=0.05)
    criterion = MNPairLoss(tau, nu, "literal")
    for _ in range(250):
        optimizer.zero_grad()
        criterion(points, labels).backward()
        optimizer.step()
    unit = torch.nn.functional.normalize(points.detach(), dim=1)
    same = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
    settled = float((unit @ unit.T)[same].mean())
    assert settled == pytest.approx(predicted_literal_cosine(classes, each, tau, nu), abs=0.05)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "literal"])
def test_the_other_forms_pull_a_class_together(form: Form) -> None:
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(8)
    points = torch.randn(32, 16, requires_grad=True)
    optimizer = torch.optim.Adam([points], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        MNPairLoss(form=form)(points, labels).backward()
        optimizer.step()
    unit = torch.nn.functional.normalize(points.detach(), dim=1)
    assert float((unit @ unit.T)[labels[:, None] == labels].mean()) > 0.9


def test_instance_loss_and_its_gradient_equal_the_slow_version() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    views = [e / e.dot(e).sqrt() for e in embeddings]
    terms = []
    for i in range(6):
        weights = {j: (views[i].dot(views[j]) / 0.5).exp() for j in range(6) if j != i}
        terms.append(-(weights[(i + 3) % 6] / sum(weights.values())).log())
    slow = sum(terms[1:], terms[0]) / 6
    assert_equal_to_ten_digits(instance_loss(embeddings[:3], embeddings[3:], 0.5), slow, embeddings)


def test_an_image_that_is_in_the_batch_twice_is_not_held_apart_from_itself() -> None:
    torch.manual_seed(0)
    views, images = torch.randn(8, 5, dtype=torch.float64), torch.tensor([7, 2, 7, 5])
    unit, terms = torch.nn.functional.normalize(views, dim=1), []
    for i in range(8):
        target = (i + 4) % 8
        others = [j for j in range(8) if j == target or images[j % 4] != images[i % 4]]
        weights = (unit[others] @ unit[i] / 0.5).exp()
        terms.append(-(weights[others.index(target)] / weights.sum()).log())
    loss = instance_loss(views[:4], views[4:], 0.5, images)
    assert torch.isclose(loss, torch.stack(terms).mean(), rtol=1e-10)
    different = torch.tensor([1, 2, 3, 4])
    assert instance_loss(views[:4], views[4:], 0.5, different) == instance_loss(views[:4], views[4:], 0.5)

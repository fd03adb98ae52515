"""The MN-pair loss and its relatives. Axes: B images, R images they are compared with, C classes, D dimensions.

With s = cosine / tau, P = nu * sum over positives of exp(s) and Q = (1 - nu) * sum over negatives of exp(s):

    L = -log(P / (P + Q)) = softplus(log Q - log P)

Equation (5) of the paper prints another "+ P" in front. Taken literally its minimum lies at
P* = (-Q + sqrt(Q^2 + 4Q)) / 2 < 1 whatever Q is, which pulls positives *apart*; it is kept as the form ``literal``
and explained in docs/method.md.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.reducers import DivisorReducer
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_pairs
from torch import Tensor
from torch.nn import functional

Form = Literal["mn_pair", "n_pair", "supcon", "mean_of_logs", "literal"]

_LARGEST_EXPONENT = 30.0  # of ``literal``: Adam squares gradients of this size over tau, and float32 must hold them


class MNPairLoss(BaseMetricLossFunction):  # type: ignore[misc]
    """MN-pair loss over all pairs of a batch: every image is an anchor once, and is forwarded once.

    Where the paper draws M - 1 positives and N - 1 negatives for an anchor, a batch offers more of both; the sums
    are means times M - 1 and N - 1, so that ``positive_weight`` keeps its meaning. The paper's own tuples, or the
    pairs of a miner of pytorch-metric-learning, come in as ``indices_tuple``.

    The forms, for an anchor with positives p:

    * ``mn_pair``: -log(P / (P + Q)), equation (5) without the term that it has too many;
    * ``literal``: P - log(P / (P + Q)), equation (5) as printed;
    * ``mean_of_logs``: the mean over p of -log(P_p / (P_p + Q)) with P_p = nu * (M - 1) * exp(s_p);
    * ``n_pair``: the mean over p of equation (4), which is ``mean_of_logs`` at M = 2 and nu = 1/2;
    * ``supcon``: the mean over p of -log(exp(s_p) / sum over all others of exp(s)), equation 2 of Khosla et al. 2020
      (arXiv:2004.11362); plain sums, so that nu, M and N have no say.

    Args:
        temperature: tau of equation (3).
        positive_weight: nu of equation (5); the negatives weigh 1 - nu.
        form: see the table.
        m, n: the paper's M and N; by default the number of classes in the batch.
        hard_negatives: beta of Robinson et al. 2021 (arXiv:2010.04592): a negative weighs exp(beta * s), over the
            mean of that; 0 is the plain mean, to the last bit. Labels say who is a negative, so that their
            correction for false negatives is not needed.
        options: of the base class: ``reducer``, ``distance``, ``embedding_regularizer``.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        temperature: float = 0.3,
        positive_weight: float = 0.15,
        form: Form = "mn_pair",
        m: int | None = None,
        n: int | None = None,
        hard_negatives: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if temperature <= 0 or not 0 < positive_weight < 1 or hard_negatives < 0:
            raise ValueError(
                "temperature must be above 0, positive_weight between 0 and 1, and hard_negatives at least 0"
            )
        if form not in get_args(Form):
            raise ValueError(f"form is {form!r}; {', '.join(get_args(Form))} are known")
        if min(m or 2, n or 2) < 2:
            raise ValueError("m and n count the anchor as well: they are at least 2")
        self.temperature, self.positive_weight, self.form, self.m, self.n = temperature, positive_weight, form, m, n
        self.hard_negatives = hard_negatives

    def get_default_distance(self) -> CosineSimilarity:
        """The cosine, equation (1)."""
        return CosineSimilarity()

    def get_default_reducer(self) -> DivisorReducer:
        """The mean over anchors."""
        return DivisorReducer()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The mean over anchors, the images that have a positive and a negative; 0 when there are none.

        The base class's own method refuses labels of two dimensions; the names of the arguments are its names.

        Args:
            embeddings: B x D, of any length; half precision is computed as float32.
            labels: B class codes; or B x C, 1 where an image carries a class. Then a pair that shares classes is a
                positive that weighs its Jaccard index, and a pair that shares none is a negative. Images without any
                class form a class of their own.
            indices_tuple: the pairs to look at, as a miner returns them; all pairs by default.
            ref_emb: R x D, what the anchors are compared with; the batch itself by default.
            ref_labels: theirs.

        Raises:
            ValueError: shapes that do not fit; neither labels nor pairs; M or N unknown.
        """
        self.reset_stats()
        if labels is not None:
            labels = labels.to(embeddings.device)
        if ref_emb is not None and ref_labels is not None:
            ref_labels = ref_labels.to(embeddings.device)
        loss_dict = self.compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        self.add_embedding_regularization_to_loss_dict(loss_dict, embeddings)
        return self.reducer(loss_dict, embeddings, labels)

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """Unreduced losses as the library's reducers take them: B, 0 for an image that is no anchor."""
        # bf16 keeps three digits of a cosine; divided by a small tau that is an error of several tenths.
        with torch.autocast(embeddings.device.type, enabled=False):
            weighed = self.compare(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            return self.weigh(*weighed, labels if ref_emb is None else ref_labels)

    def compare(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines over tau, and how much each pair counts as a positive and as a negative: three B x R.

        To be called without autocast; arguments and errors as of ``forward``.
        """
        others, other_labels = (embeddings, labels) if ref_emb is None else (ref_emb, ref_labels)
        for rows, codes in ((embeddings, labels), (others, other_labels)):
            if codes is not None and (len(codes) != len(rows) or codes.ndim not in (1, 2)):
                raise ValueError(f"labels of shape {tuple(codes.shape)} do not fit {len(rows)} embeddings")
        # Not (embeddings, embeddings): the base class would normalise them twice, and round the gradient twice.
        compared = None if ref_emb is None else _at_least_float32(ref_emb)
        cosines_BR = self.distance(_at_least_float32(embeddings), compared)
        similarities_BR = (cosines_BR if self.distance.is_inverted else -cosines_BR) / self.temperature
        if indices_tuple is not None:
            positive_BR, negative_BR = _named_pairs(similarities_BR, indices_tuple, labels, other_labels)
        elif labels is not None and other_labels is not None:
            pairs = _all_pairs(labels, other_labels, with_themselves=ref_emb is not None)
            positive_BR, negative_BR = (weights.to(similarities_BR.dtype) for weights in pairs)
        else:
            raise ValueError("either labels or indices_tuple must say which pairs belong together")
        return similarities_BR, positive_BR, negative_BR

    def weigh(
        self, similarities_BR: Tensor, positive_BR: Tensor, negative_BR: Tensor, other_labels: Tensor | None
    ) -> dict[str, Any]:
        """Unreduced losses of pairs that count so much, as ``compute_loss`` gives them.

        The labels are counted where M or N are not given.
        """
        losses_B = self._per_anchor(similarities_BR, positive_BR, negative_BR, other_labels)
        is_anchor_B = (positive_BR > 0).any(1) & (negative_BR > 0).any(1)
        losses_B = torch.where(is_anchor_B, losses_B, 0.0)
        return {
            "loss": {
                "losses": losses_B,
                "indices": torch.arange(len(losses_B), device=losses_B.device),
                "reduction_type": "element",
                "divisor": is_anchor_B.sum(),
            }
        }

    def _per_anchor(
        self, similarities_BR: Tensor, positive_BR: Tensor, negative_BR: Tensor, other_labels: Tensor | None
    ) -> Tensor:
        """Losses of all rows; those of rows that are no anchors are finite and mean nothing."""
        beta = self.hard_negatives
        log_mean_q = _log_mean_exp((1 + beta) * similarities_BR, negative_BR)
        if beta:  # divide the weights' mean out: sum of exp((1 + beta) s) over sum of exp(beta s)
            log_mean_q = log_mean_q - _log_mean_exp(beta * similarities_BR, negative_BR)
        if self.form == "supcon":
            is_positive_BR = (positive_BR > 0).to(positive_BR.dtype)
            log_sum_p = _log_mean_exp(similarities_BR, is_positive_BR) + is_positive_BR.sum(1).clamp(min=1).log()
            log_sum_q = log_mean_q + negative_BR.sum(1).clamp(min=1).log()
            return torch.logaddexp(log_sum_p, log_sum_q) - _weighted_mean(similarities_BR, positive_BR)
        m, n, nu = self.m, self.n, self.positive_weight
        if self.form == "n_pair":
            m, nu = 2, 0.5
        if m is None or n is None:
            classes = _count_classes(other_labels)
            m, n = m or classes, n or classes
        log_scale_p = math.log(nu * max(m - 1, 1))
        log_q = log_mean_q + math.log((1 - nu) * max(n - 1, 1))
        if self.form in ("n_pair", "mean_of_logs"):
            return _weighted_mean(_softplus(log_q[:, None] - (similarities_BR + log_scale_p)), positive_BR)
        log_p = _log_mean_exp(similarities_BR, positive_BR) + log_scale_p
        losses = _softplus(log_q - log_p)
        return losses + _bounded_exp(log_p) if self.form == "literal" else losses


def jaccard_index(first_BC: Tensor, second_RC: Tensor) -> Tensor:
    """Shared classes over all classes of each pair of images: B x R, float64.

    Two images without any class agree in that nothing is there: 1.
    """
    first, second = (first_BC != 0).double(), (second_RC != 0).double()
    shared_BR = first @ second.T
    union_BR = first.sum(1)[:, None] + second.sum(1)[None, :] - shared_BR
    return torch.where(union_BR > 0, shared_BR / union_BR.clamp(min=1), 1.0)


def _all_pairs(labels: Tensor, other_labels: Tensor, with_themselves: bool) -> tuple[Tensor, Tensor]:
    """How much each pair counts as a positive, and as a negative: two B x R."""
    if labels.ndim == 2:
        likeness_BR = jaccard_index(labels, other_labels)
    else:
        likeness_BR = (labels[:, None] == other_labels[None, :]).double()
    negative_BR = (likeness_BR == 0).double()
    return likeness_BR if with_themselves else likeness_BR.fill_diagonal_(0), negative_BR


def _named_pairs(
    like_BR: Tensor, indices_tuple: tuple[Tensor, ...], labels: Tensor | None, other_labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same for pairs that somebody chose; where images carry several labels, these say how much a pair counts."""
    anchors, positives, negative_anchors, negatives = convert_to_pairs(indices_tuple, labels)
    positive_BR, negative_BR = torch.zeros_like(like_BR), torch.zeros_like(like_BR)
    positive_BR[anchors, positives] = 1.0
    negative_BR[negative_anchors, negatives] = 1.0
    if labels is not None and other_labels is not None and labels.ndim == 2:
        likeness_BR = jaccard_index(labels, other_labels)
        positive_BR *= likeness_BR.to(like_BR.dtype)
        negative_BR *= likeness_BR == 0
    return positive_BR, negative_BR


def _count_classes(labels: Tensor | None) -> int:
    if labels is None:
        raise ValueError("without labels the number of classes is unknown: give m and n")
    if labels.ndim == 1:
        return int(labels.unique().numel())
    carried_BC = labels != 0
    return int(carried_BC.any(0).sum()) + int((~carried_BC.any(1)).any())


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _log_mean_exp(values_BR: Tensor, weights_BR: Tensor) -> Tensor:
    """log of each row's weighted mean of exp; 0 for a row without weight."""
    # A finite filler: -inf in an empty row would turn the gradient of the others into NaN.
    filler = torch.finfo(values_BR.dtype).min
    filled_BR = (values_BR + weights_BR.log()).masked_fill(weights_BR == 0, filler)
    total_B = weights_BR.sum(1)
    log_mean_B = torch.logsumexp(filled_BR, dim=1) - torch.where(total_B > 0, total_B, 1.0).log()
    return torch.where(total_B > 0, log_mean_B, 0.0)


def _weighted_mean(values_BR: Tensor, weights_BR: Tensor) -> Tensor:
    total_B = weights_BR.sum(1)
    return (values_BR * weights_BR).sum(1) / torch.where(total_B > 0, total_B, 1.0)


def _softplus(values: Tensor) -> Tensor:
    # Beyond its threshold torch returns the argument: at the default of 20 that is exact in float32 only.
    return functional.softplus(values, threshold=40 if values.dtype == torch.float64 else 20)


def _bounded_exp(values: Tensor) -> Tensor:
    """exp, continued by its tangent where float32 would overflow."""
    bounded = values.clamp(max=_LARGEST_EXPONENT)
    return bounded.exp() * (1 + (values - bounded))


def instance_loss(first_BD: Tensor, second_BD: Tensor, temperature: float, images_B: Tensor | None = None) -> Tensor:
    """NT-Xent between two views of the same images: the other view is the positive, all other images are negatives.

    Holds images of one class apart from each other, against class collapse (Chen et al. 2020, arXiv:2002.05709).

    Args:
        images_B: which image each pair of views shows: one that is in the batch twice is not held apart from itself.
            None: all are different ones.
    """
    views_2BD = functional.normalize(_at_least_float32(torch.cat([first_BD, second_BD])), dim=1)
    n = len(first_BD)
    images_B = torch.arange(n, device=views_2BD.device) if images_B is None else images_B
    targets = torch.arange(2 * n, device=views_2BD.device).roll(n)
    left_out = (images_B[:, None] == images_B[None, :]).repeat(2, 2)
    left_out[torch.arange(2 * n, device=views_2BD.device), targets] = False
    similarities = views_2BD @ views_2BD.T / temperature
    similarities = similarities - left_out * 1e4
    return functional.cross_entropy(similarities, targets)

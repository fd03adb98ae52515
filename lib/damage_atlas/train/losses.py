"""The MN-pair loss. Axes: B images, D dimensions, C classes.

With s = cosine / tau, P = nu * sum over positives of exp(s) and Q = (1 - nu) * sum over negatives of exp(s):

    L = -log(P / (P + Q)) = softplus(log Q - log P)

Equation (5) of the paper prints another "+ P" in front. Taken literally its minimum lies at
P* = (-Q + sqrt(Q^2 + 4Q)) / 2 < 1 whatever Q is, which pulls positives *apart*; it is kept as the form ``literal``
and explained in docs/method.md.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class MNPairLoss(nn.Module):
    """MN-pair loss over all pairs of a batch: every image is an anchor once, and is forwarded once.

    Where the paper draws M - 1 positives and N - 1 negatives for an anchor, a batch offers more of both; the sums
    are means times M - 1 and N - 1, so that ``positive_weight`` keeps its meaning.

    Args:
        temperature: tau of equation (3).
        positive_weight: nu of equation (5); the negatives weigh 1 - nu.
        form: ``mn_pair``, or ``literal`` for equation (5) as printed.
        m, n: the paper's M and N; by default the number of classes in the batch.
    """

    def __init__(
        self,
        temperature: float = 0.3,
        positive_weight: float = 0.15,
        form: Literal["mn_pair", "literal"] = "mn_pair",
        m: int | None = None,
        n: int | None = None,
    ) -> None:
        super().__init__()
        if temperature <= 0 or not 0 < positive_weight < 1:
            raise ValueError("temperature must be above 0 and positive_weight between 0 and 1")
        if form not in ("mn_pair", "literal"):
            raise ValueError(f"form is {form!r}; mn_pair and literal are known")
        self.temperature, self.positive_weight, self.form, self.m, self.n = temperature, positive_weight, form, m, n

    def forward(self, embeddings_BD: Tensor, labels_B: Tensor) -> Tensor:
        """The mean over anchors that have a positive and a negative; 0 when there are none."""
        losses, is_anchor = self.per_anchor(embeddings_BD, labels_B)
        return torch.where(is_anchor, losses, 0.0).sum() / is_anchor.sum().clamp(min=1)

    def per_anchor(self, embeddings_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Unreduced losses, and which images are anchors (have a positive and a negative): both of size B."""
        unit_BD = functional.normalize(_at_least_float32(embeddings_BD), dim=1)
        similarities_BB = unit_BD @ unit_BD.T / self.temperature
        same_BB = labels_B[:, None] == labels_B[None, :]
        itself_BB = torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
        positive_BB, negative_BB = same_BB & ~itself_BB, ~same_BB
        classes = int(labels_B.unique().numel())
        m, n = self.m or classes, self.n or classes
        log_p = _log_mean_exp(similarities_BB, positive_BB) + math.log(self.positive_weight * max(m - 1, 1))
        log_q = _log_mean_exp(similarities_BB, negative_BB) + math.log((1 - self.positive_weight) * max(n - 1, 1))
        is_anchor = positive_BB.any(1) & negative_BB.any(1)
        losses = functional.softplus(log_q - log_p)
        if self.form == "literal":
            losses = losses + log_p.exp()
        return losses, is_anchor


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _log_mean_exp(values_BB: Tensor, mask_BB: Tensor) -> Tensor:
    """log of the mean of exp over each row's masked entries; 0 for a row that has none."""
    any_B = mask_BB.any(1)
    # A finite filler: -inf in an empty row would turn the gradient of the others into NaN.
    filled = values_BB.masked_fill(~mask_BB, -1e4 if values_BB.dtype == torch.float32 else -1e30)
    log_sum = torch.logsumexp(filled, dim=1)
    count = mask_BB.sum(1).clamp(min=1)
    return torch.where(any_B, log_sum - count.to(values_BB.dtype).log(), 0.0)


def instance_loss(first_BD: Tensor, second_BD: Tensor, temperature: float) -> Tensor:
    """NT-Xent between two views of the same images: the other view is the positive, all else negative.

    Holds images of one class apart from each other, against class collapse (Chen et al. 2020, arXiv:2002.05709).
    """
    views_2BD = functional.normalize(_at_least_float32(torch.cat([first_BD, second_BD])), dim=1)
    n = len(first_BD)
    similarities = views_2BD @ views_2BD.T / temperature
    similarities = similarities - torch.eye(2 * n, device=views_2BD.device) * 1e4
    targets = torch.arange(2 * n, device=views_2BD.device).roll(n)
    return functional.cross_entropy(similarities, targets)

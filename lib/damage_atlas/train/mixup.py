"""Mixup of embeddings for the MN-pair loss: Metrix of Venkataramanan et al. 2022 (arXiv:2106.04990).

Let y be 1 for the positives and 0 for the negatives of an anchor a, and mean[w] the mean of e^s(a, .) weighted by w.
The MN-pair loss is of Metrix's generic form; a pair (p, n) is mixed by lambda ~ Beta(alpha, alpha), its labels as well:

    L = softplus(log Q - log P),     P = nu (M - 1) mean[y],        Q = (1 - nu) (N - 1) mean[1 - y]     over p and n;
    v = lambda p + (1 - lambda) n,   its label is lambda * 1 + (1 - lambda) * 0 = lambda, so that
    P~ = nu (M - 1) mean[lambda],    Q~ = (1 - nu) (N - 1) mean[1 - lambda]                              over v,

and L + w softplus(log Q~ - log P~) is trained: the more of a positive is in a mix, the nearer it comes to the anchor.

Each mix has a lambda of its own: with one for all, as with a single mix, P~ / Q~ is a constant, whatever the embeddings
are (unless near negatives weigh more). v is not brought to unit length, so that s(a, v) is the same mix of s(a, p) and
s(a, n): the cosine of a mix of two nearly opposite vectors, which two classes become, jumps from one to the other, and
its gradient has no bound.

Axes: B anchors, R images they are compared with, here the same ones; D dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from damage_atlas.train.losses import MNPairLoss

_STREAM = 0x31B  # keeps these draws apart from the samplers'


def mixup_loss(
    criterion: MNPairLoss, embeddings_BD: Tensor, labels: Tensor, *, alpha: float, seed: int, iteration: int
) -> Tensor:
    """The mean over anchors of the loss of their mixed pairs: each negative, mixed with one of the positives.

    Which one, and by how much, is drawn by (seed, iteration) alone: any worker that has the batch draws the same.

    Args:
        criterion: of the form ``mn_pair``; its tau, nu, M, N and beta count here as well.
        embeddings_BD: of any length; half precision is computed as float32.
        labels: B class codes; or B x C, where a mix with a positive of weight w counts lambda w among the positives.
        alpha: of the Beta distribution; the smaller, the less is mixed.

    Raises:
        ValueError: another form, which is no function of P and Q.
    """
    if criterion.form != "mn_pair":
        raise ValueError(f"mixup needs the form mn_pair, whose loss is one of P and Q alone, not {criterion.form}")
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        similarities_BR, positive_BR, negative_BR = criterion.compare(embeddings_BD, labels)
        chosen_BR, lambda_BR = _draw(positive_BR, alpha, np.random.default_rng([seed, iteration, _STREAM]))
        mixed_BR = lambda_BR * similarities_BR.gather(1, chosen_BR) + (1 - lambda_BR) * similarities_BR
        as_positive_BR = lambda_BR * positive_BR.gather(1, chosen_BR) * negative_BR
        loss_dict = criterion.weigh(mixed_BR, as_positive_BR, (1 - lambda_BR) * negative_BR, labels)
    return criterion.reducer(loss_dict, embeddings_BD, labels)


def _draw(positive_BR: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """For each pair one of its anchor's positives (a column, any where it has none), and lambda: two B x R.

    The same numbers are drawn whatever the labels are, and nothing waits for the device.
    """
    device, shape = positive_BR.device, tuple(positive_BR.shape)
    places_BR = torch.from_numpy(rng.random(shape)).to(device)
    lambda_BR = torch.from_numpy(rng.beta(alpha, alpha, shape)).to(device, positive_BR.dtype)
    is_positive_BR = positive_BR > 0
    positives_first_BR = is_positive_BR.int().argsort(dim=1, descending=True, stable=True)
    return positives_first_BR.gather(1, (places_BR * is_positive_BR.sum(1, keepdim=True)).long()), lambda_BR

"""Grad-CAM for metric learning in closed form (equations 6 to 8).

Axes: B images, M feature maps, K units of FC1, H x W places.

The score is y = sum over k of U_k^2 with U the output of FC1. FC1 is linear on the flattened feature layer A, with
weights W[k, m, x, y], so dy/dA[m, x, y] = 2 * sum over k of U_k W[k, m, x, y], and the importance of equation (7) is

    alpha_m = (2 / HW) * sum over k of U_k * (sum over x, y of W[k, m, x, y])

exactly: one small matrix product a batch, no backward pass. Every network of ours ends in feature maps and FC1, so
this holds for all of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from damage_atlas.network import EmbeddingNet

Method = Literal["gradcam", "hirescam"]


@torch.no_grad()
def explain_batch(network: EmbeddingNet, images_BCHW: Tensor, method: Method = "gradcam") -> Tensor:
    """Raw maps at the feature layer's size (B x H x W; 20 x 20 at 160 pixels in Table 3), at least 0.

    Args:
        images_BCHW: the network's input (see ``network.to_input``).
        method: ``gradcam`` averages the gradient over the places (equation 7); ``hirescam`` does not
            (Draelos and Carin 2020): before the ReLU its map sums to 2 (|U|^2 - U b) with b the bias of FC1.
    """
    return functional.relu(signed_maps(network, images_BCHW, method))


@torch.no_grad()
def signed_maps(network: EmbeddingNet, images_BCHW: Tensor, method: Method = "gradcam") -> Tensor:
    """The maps before the ReLU of equation (8)."""
    features = network.features(images_BCHW)
    units_BK = network.reduction(features)
    _, m, h, w = features.shape
    weights_KMHW = network.reduction_weights(h, w)
    if method == "gradcam":
        alpha_BM = 2 / (h * w) * (units_BK @ weights_KMHW.sum(dim=(2, 3)))
        return torch.einsum("bm,bmhw->bhw", alpha_BM, features)
    gradient_BMHW = 2 * (units_BK @ weights_KMHW.flatten(1)).view(-1, m, h, w)
    return (gradient_BMHW * features).sum(dim=1)


@torch.no_grad()
def deletion_scores(network: EmbeddingNet, images_BCHW: Tensor, maps_BHW: Tensor, share: float = 0.2) -> Tensor:
    """How much of the score goes when the hottest places are painted grey: 1 - y(painted) / y, one number an image.

    Compare it with ``share``: a map that picks places at random loses about that much.
    """
    b, h, w = maps_BHW.shape
    count = max(1, round(share * h * w))
    hottest = maps_BHW.flatten(1).topk(count, dim=1).indices
    mask = torch.zeros(b, h * w, device=maps_BHW.device).scatter_(1, hottest, 1.0).view(b, 1, h, w)
    mask = functional.interpolate(mask, size=images_BCHW.shape[2:], mode="nearest")
    mean = images_BCHW.mean(dim=(2, 3), keepdim=True)
    painted = images_BCHW * (1 - mask) + mean * mask
    before, after = _score(network, images_BCHW), _score(network, painted)
    return 1 - after / before.clamp(min=1e-12)


def _score(network: EmbeddingNet, images_BCHW: Tensor) -> Tensor:
    return network.reduction(network.features(images_BCHW)).square().sum(dim=1)

"""Closed-form Grad-CAM against autograd from the feature layer on, as pytorch-grad-cam works."""

from __future__ import annotations

import torch
from torch.nn import functional

from bench.timing import compare
from damage_atlas.explain.gradcam import explain_batch
from damage_atlas.network import DamageNet

_BATCH = 32


def by_autograd(network: DamageNet, images_BCHW: torch.Tensor) -> torch.Tensor:
    features = network.features(images_BCHW).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network.reduction(features).square().sum(), features)
    return functional.relu((gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1))


def main() -> None:
    network = DamageNet().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(_BATCH, 3, 160, 160).to(memory_format=torch.channels_last)
    compare(
        "Grad-CAM, closed form",
        "autograd",
        lambda: explain_batch(network, images),
        lambda: by_autograd(network, images),
        _BATCH,
    )

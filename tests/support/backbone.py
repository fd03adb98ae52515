"""Backbones as a user might bring them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallBackbone(nn.Module):
    """Feature maps at a quarter of the side, with what training must not be confused by."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Linear(3, 3)  # as a classifier that is left out would be

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.drop(torch.relu(self.norm(self.conv(images_BCHW))))


class PooledBackbone(SmallBackbone):
    """Its last pooling was left in."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return super().forward(images_BCHW).mean(dim=(2, 3))


class TiedBackbone(SmallBackbone):
    """Two names for one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.conv


class OddBackbone(SmallBackbone):
    """Raises what a library would not, when it is built or when it is used."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.late = late
        if not late:
            raise KeyError("stem")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        raise AssertionError("images of 64 pixels only")

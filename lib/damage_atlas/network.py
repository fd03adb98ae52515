"""The network of Table 3: four convolutions, two fully connected layers, an embedding of unit length.

Axes: B images, C channels, H x W pixels, K units of FC1, D embedding dimensions.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from damage_atlas.errors import ContractError

CHANNELS = (8, 32, 64, 128)
REDUCTION_UNITS = 128  # FC1, the reduction layer of equation (6)
_PIXEL_MEAN, _PIXEL_SPREAD = 127.5, 63.75


class DamageNet(nn.Module):
    """Table 3: conv 3x3 (8, 32, 64, 128 channels), ReLU each, 2x2 max-pool after the first three, FC1, ReLU, FC2.

    No batch normalisation, no skip connection. 6,650,704 parameters at 160 pixels and 16 dimensions.

    Args:
        input_size: side of the square input, pixels; each of three poolings halves it, rounding down.
        embedding_size: D.
        standardize: whether ``prepare`` takes each picture's own brightness and contrast out.
    """

    def __init__(self, input_size: int = 160, embedding_size: int = 16, standardize: bool = False) -> None:
        super().__init__()
        self.standardize = standardize
        self.input_size = input_size
        self.embedding_size = embedding_size
        first, second, third, fourth = CHANNELS
        self.conv1 = nn.Conv2d(3, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        self.conv4 = nn.Conv2d(third, fourth, 3, padding=1)
        self.fc1 = nn.Linear(fourth * (input_size // 8) ** 2, REDUCTION_UNITS)
        self.fc2 = nn.Linear(REDUCTION_UNITS, embedding_size)

    def prepare(self, pixels_BHWC: np.ndarray | Tensor) -> Tensor:
        """Preprocessed pixels (uint8, B x H x W x 3) as this network's input (float32, B x 3 x H x W)."""
        return to_input(pixels_BHWC, self.standardize)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Relu4, the feature layer of equation (7): B x 128 x H/8 x W/8."""
        maps = functional.max_pool2d(functional.relu(self.conv1(images_BCHW)), 2)
        maps = functional.max_pool2d(functional.relu(self.conv2(maps)), 2)
        maps = functional.max_pool2d(functional.relu(self.conv3(maps)), 2)
        return functional.relu(self.conv4(maps))

    def reduction(self, features_BCHW: Tensor) -> Tensor:
        """FC1 before its ReLU, U of equation (6): B x K."""
        # contiguous(): a channels-last map would flatten in another order than FC1's weights have.
        return self.fc1(features_BCHW.contiguous().flatten(1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Embeddings of unit length: B x D."""
        units = functional.relu(self.reduction(self.features(images_BCHW)))
        return functional.normalize(self.fc2(units).float(), dim=1)


def build_network(kind: str = "table3", **arguments: Any) -> DamageNet:
    """The network a model card names.

    Raises:
        ValueError: an unknown kind.
    """
    if kind != "table3":
        raise ValueError(f"network {kind!r} is not known; table3 is")
    return DamageNet(**arguments)


def to_input(pixels_BHWC: np.ndarray | Tensor, standardize: bool = False) -> Tensor:
    """Preprocessed pixels (uint8, B x H x W x 3) as a network's input (float32, B x 3 x H x W, about -2 to 2).

    The result is channels-last in memory: the pixels are only looked at differently, not moved.

    Args:
        standardize: give each channel of each picture mean 0 and variance 1, so that exposure and white balance
            say nothing.
    """
    images = torch.as_tensor(pixels_BHWC).permute(0, 3, 1, 2).float()
    if standardize:
        variance, mean = torch.var_mean(images, dim=(2, 3), keepdim=True)
        return images.sub_(mean).div_(variance.sqrt().add_(1.0))
    return images.sub_(_PIXEL_MEAN).div_(_PIXEL_SPREAD)


def has_fast_bf16() -> bool:
    """Whether bfloat16 gains on this CPU: AMX or AVX-512 BF16 units."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    cpu: Any = torch.cpu
    return bool(cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported())


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of ``precision`` on ``device``; ``auto`` is bf16 where the machine gains from it."""
    if precision == "bf16":
        return torch.bfloat16
    if precision == "float32":
        return torch.float32
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_fast_bf16()
    return torch.bfloat16 if fast else torch.float32


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Within this block torch works with ``threads`` threads: how many there are decides the last bits of a result."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def embed_pixels(
    network: DamageNet, pixels_BHWC: np.ndarray, batch_size: int, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """Embeddings (B x D, float32) of preprocessed pixels, in batches padded to ``batch_size``.

    The shape of a batch decides the last bits of its results, so that it must not depend on how much is left.
    """
    device = next(network.parameters()).device
    vectors = np.empty((len(pixels_BHWC), network.embedding_size), np.float32)
    for start in range(0, len(pixels_BHWC), batch_size):
        batch = pixels_BHWC[start : start + batch_size]
        padded = np.zeros((batch_size, *pixels_BHWC.shape[1:]), np.uint8)
        padded[: len(batch)] = batch
        images = network.prepare(torch.from_numpy(padded).to(device))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = network(images)
        vectors[start : start + len(batch)] = out[: len(batch)].cpu().numpy()
    return vectors


def load_network(weights: bytes, arguments: dict[str, Any], device: torch.device | str = "cpu") -> DamageNet:
    """A network from safetensors weights and its card's arguments, ready to embed, channels-last.

    Raises:
        ContractError: weights and card do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        network = build_network(**arguments)
        network.load_state_dict(load(weights))
    except (RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise ContractError(
            f"the model's weights do not fit its card ({' '.join(str(error).split())[:200]}). Train it again."
        ) from error
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()

"""Networks: Table 3 of the paper and its variants, an MLP-Mixer, a backbone of the user's own.

All of them make feature maps; a head that they share (FC1, ReLU, FC2) makes an embedding of unit length of these.

Axes: B images, C channels, M feature maps, H x W pixels or places, K units of FC1, D embedding dimensions.
"""

from __future__ import annotations

import copy
import importlib
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from damage_atlas.errors import ContractError, InputError
from damage_atlas.spec import MODULE_PATTERN

Pooling = Literal["flatten", "average"]

ALLOWED_VARIABLE = "DAMAGE_ATLAS_MODULES"  # modules and packages that backbones may come from, comma-separated

CHANNELS = (8, 32, 64, 128)
REDUCTION_UNITS = 128  # FC1, the reduction layer of equation (6)
_PIXEL_MEAN, _PIXEL_SPREAD = 127.5, 63.75
_CPU_BATCH = 16
_CPU_PIXELS = 20 * 160 * 160  # of a training pass, at once

_PATCH = 16  # of the Mixer, pixels; the sizes below keep it at half of Table 3's multiplications
_MIXER_BLOCKS, _MIXER_CHANNELS, _PLACE_UNITS, _CHANNEL_UNITS = 4, 128, 64, 256


class EmbeddingNet(nn.Module):
    """What all networks share; a network implements ``features`` and ends its construction with ``_add_head``.

    Args:
        input_size: side of the square input, pixels.
        embedding_size: D.
        standardize: whether ``prepare`` takes each picture's own brightness and contrast out.
        pooling: what FC1 sees of the feature maps: every place (``flatten``), or their means (``average``).
    """

    def __init__(self, input_size: int, embedding_size: int, standardize: bool, pooling: Pooling) -> None:
        super().__init__()
        self.input_size = input_size
        self.embedding_size = embedding_size
        self.standardize = standardize
        self.pooling = pooling

    def _add_head(self, maps: int, height: int, width: int) -> None:
        places = height * width if self.pooling == "flatten" else 1
        self.fc1 = nn.Linear(maps * places, REDUCTION_UNITS)
        self.fc2 = nn.Linear(REDUCTION_UNITS, self.embedding_size)

    def prepare(self, pixels_BHWC: np.ndarray | Tensor) -> Tensor:
        """Preprocessed pixels (uint8, B x H x W x 3) as this network's input (B x 3 x H x W, of its weights' type)."""
        return to_input(pixels_BHWC, self.standardize).to(self.fc2.weight.dtype)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """The feature layer of equation (7): B x M x H x W."""
        raise NotImplementedError

    def reduction(self, features_BMHW: Tensor) -> Tensor:
        """FC1 before its ReLU, U of equation (6): B x K."""
        if self.pooling == "average":
            return self.fc1(features_BMHW.mean(dim=(2, 3)))
        # contiguous(): a channels-last map would flatten in another order than FC1's weights have.
        return self.fc1(features_BMHW.contiguous().flatten(1))

    def reduction_weights(self, height: int, width: int) -> Tensor:
        """FC1 as a linear map of the feature maps: K x M x H x W, so that U = sum over m, x, y of W A + b."""
        if self.pooling == "average":
            return (self.fc1.weight / (height * width))[:, :, None, None].expand(-1, -1, height, width)
        return self.fc1.weight.view(REDUCTION_UNITS, -1, height, width)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Embeddings of unit length: B x D."""
        units = functional.relu(self.reduction(self.features(images_BCHW)))
        vectors = self.fc2(units)
        # Half a float is too short for cosines; a network in float64, to check sums with, keeps its digits.
        return functional.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=1)


class DamageNet(EmbeddingNet):
    """Table 3: conv 3x3 (8, 32, 64, 128 channels), ReLU each, 2x2 max-pool after the first three, FC1, ReLU, FC2.

    No batch normalisation, no skip connection. 6,650,704 parameters at 160 pixels and 16 dimensions; 113,488 at any
    size with ``pooling="average"``, which is not the paper's. Each of the three poolings halves the side, rounding
    down.

    Args: those of `EmbeddingNet`.
    """

    def __init__(
        self,
        input_size: int = 160,
        embedding_size: int = 16,
        standardize: bool = False,
        pooling: Pooling = "flatten",
    ) -> None:
        super().__init__(input_size, embedding_size, standardize, pooling)
        first, second, third, fourth = CHANNELS
        self.conv1 = nn.Conv2d(3, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        self.conv4 = nn.Conv2d(third, fourth, 3, padding=1)
        self._add_head(fourth, input_size // 8, input_size // 8)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Relu4: B x 128 x H/8 x W/8."""
        if torch.is_grad_enabled() and images_BCHW.device.type == "cpu":
            # What the backward pass needs of more images does not fit a core's caches: half as much time again.
            pieces = images_BCHW.chunk(-(-images_BCHW[:, 0].numel() // _CPU_PIXELS)) if len(images_BCHW) else ()
            if len(pieces) > 1:
                return torch.cat([self._features(piece) for piece in pieces])
        return self._features(images_BCHW)

    def _features(self, images_BCHW: Tensor) -> Tensor:
        # ReLU after the pooling: the same values and gradients as before it, on a quarter of the places.
        maps = functional.relu(_halve(self.conv1(images_BCHW)))
        maps = functional.relu(_halve(self.conv2(maps)))
        maps = functional.relu(_halve(self.conv3(maps)))
        return functional.relu(self.conv4(maps))


def _halve(maps_BMHW: Tensor) -> Tensor:
    """2x2 max-pooling; without gradients on a CPU by plain maxima, three to five times as fast as torch's with bf16."""
    if torch.is_grad_enabled() or maps_BMHW.device.type != "cpu":
        return functional.max_pool2d(maps_BMHW, 2)
    batch, maps, height, width = maps_BMHW.shape
    even = maps_BMHW.permute(0, 2, 3, 1)[:, : height // 2 * 2, : width // 2 * 2]
    rows = torch.maximum(even[:, 0::2], even[:, 1::2])
    pairs = rows.reshape(batch, height // 2, width // 2, 2 * maps)
    return torch.maximum(pairs[..., :maps], pairs[..., maps:]).permute(0, 3, 1, 2)


class MixerNet(EmbeddingNet):
    """An MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601): the paper's future work, "MLP-based network".

    Patches of 16 x 16 pixels; each block mixes first places, then channels. What is left of the picture at the right
    and below, when the side is no multiple of the patch, is not looked at.

    Args: those of `EmbeddingNet`.
    """

    def __init__(
        self,
        input_size: int = 160,
        embedding_size: int = 16,
        standardize: bool = False,
        pooling: Pooling = "flatten",
    ) -> None:
        super().__init__(input_size, embedding_size, standardize, pooling)
        self.side = input_size // _PATCH
        self.patches = nn.Conv2d(3, _MIXER_CHANNELS, _PATCH, stride=_PATCH)
        self.blocks = nn.Sequential(*(_MixerBlock(self.side**2) for _ in range(_MIXER_BLOCKS)))
        self.norm = nn.LayerNorm(_MIXER_CHANNELS)
        self._add_head(_MIXER_CHANNELS, self.side, self.side)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """The last block's output, normalised, as maps: B x 128 x H/16 x W/16."""
        tokens = self.patches(images_BCHW).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(tokens)).transpose(1, 2).unflatten(2, (self.side, self.side))


class _MixerBlock(nn.Module):
    def __init__(self, places: int) -> None:
        super().__init__()
        self.place_norm = nn.LayerNorm(_MIXER_CHANNELS)
        self.mix_places = nn.Sequential(nn.Linear(places, _PLACE_UNITS), nn.GELU(), nn.Linear(_PLACE_UNITS, places))
        self.channel_norm = nn.LayerNorm(_MIXER_CHANNELS)
        self.mix_channels = nn.Sequential(
            nn.Linear(_MIXER_CHANNELS, _CHANNEL_UNITS), nn.GELU(), nn.Linear(_CHANNEL_UNITS, _MIXER_CHANNELS)
        )

    def forward(self, tokens_BPC: Tensor) -> Tensor:
        tokens_BPC = tokens_BPC + self.mix_places(self.place_norm(tokens_BPC).transpose(1, 2)).transpose(1, 2)
        return tokens_BPC + self.mix_channels(self.channel_norm(tokens_BPC))


class CustomNet(EmbeddingNet):
    """The head on a backbone of the user's own.

    The backbone stays in evaluation mode while it is trained: batches are cut into shards, whose own statistics
    would depend on how many there are, and dropout would make a resumed run another one.

    Args:
        module: ``package.module:Class``, a ``torch.nn.Module`` that makes feature maps (B x M x H x W) of images
            (B x 3 x H x W); it must be installed wherever the model is used, and ``DAMAGE_ATLAS_MODULES`` must name
            its module, or a package that holds it, there.
        arguments: of the class.
        input_size, embedding_size, standardize, pooling: those of `EmbeddingNet`.

    Raises:
        InputError: the class is not allowed, cannot be imported or built, or does not make feature maps.
    """

    def __init__(
        self,
        module: str,
        arguments: Mapping[str, Any] | None = None,
        input_size: int = 160,
        embedding_size: int = 16,
        standardize: bool = False,
        pooling: Pooling = "flatten",
    ) -> None:
        super().__init__(input_size, embedding_size, standardize, pooling)
        self.backbone = _build_backbone(module, arguments or {}).eval()
        try:
            with torch.no_grad():
                maps = self.backbone(torch.zeros(1, 3, input_size, input_size))
        except Exception as error:  # the user's code may raise anything
            raise InputError(
                f"{module} fails on an image of {input_size} pixels ({_said(error)}). Mend the class, or set another "
                "train.input_size."
            ) from error
        if not isinstance(maps, Tensor) or maps.ndim != 4:
            found = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise InputError(
                f"{module} makes {found} of one image; a backbone makes feature maps, (1, maps, height, width): leave "
                "out its last pooling and what comes after."
            )
        self._add_head(*maps.shape[1:])

    def train(self, mode: bool = True) -> CustomNet:
        """As torch's, for the head alone."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, images_BCHW: Tensor) -> Tensor:
        """The backbone's feature maps: B x M x H x W."""
        return self.backbone(images_BCHW)


def _build_backbone(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    module, name = _allowed_name(path)
    try:
        kind = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"{path} cannot be imported ({_said(error)}). Name it as package.module:Class, and install the "
            "package wherever the model is used."
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise InputError(f"{path} is no class of torch modules.")
    try:
        return kind(**arguments)
    except Exception as error:  # likewise
        raise InputError(
            f"{path} cannot be built with {dict(arguments)} ({_said(error)}). Mend the class or its "
            "train.module_arguments."
        ) from error


def _allowed_name(path: Any) -> tuple[str, str]:
    """Module and class of ``package.module:Class``; InputError unless this machine's environment allows the module."""
    # Importing runs code, and a name may come from a model card: whoever writes to the store must not choose it.
    if not isinstance(path, str) or not re.fullmatch(MODULE_PATTERN, path):
        raise InputError(f"{path!r} names no backbone. Name it as package.module:Class.")
    module, _, name = path.partition(":")
    allowed = [each.strip() for each in os.environ.get(ALLOWED_VARIABLE, "").split(",") if each.strip()]
    if not any(module == each or module.startswith(f"{each}.") for each in allowed):
        raise InputError(
            f"{path} is not imported: on this machine {ALLOWED_VARIABLE} allows {', '.join(allowed) or 'no module'}. "
            f"If you trust it, set {ALLOWED_VARIABLE}={','.join([*allowed, module])} wherever the model is used."
        )
    return module, name


_NETWORKS: dict[str, type[EmbeddingNet]] = {"table3": DamageNet, "mixer": MixerNet, "custom": CustomNet}


def build_network(kind: str = "table3", **arguments: Any) -> EmbeddingNet:
    """The network a model card names.

    Raises:
        ValueError: an unknown kind.
        InputError: a backbone that is not there, or is none.
    """
    if kind not in _NETWORKS:
        raise ValueError(f"network {kind!r} is not known; {', '.join(_NETWORKS)} are")
    return _NETWORKS[kind](**arguments)


def to_input(pixels_BHWC: np.ndarray | Tensor, standardize: bool = False) -> Tensor:
    """Preprocessed pixels (uint8, B x H x W x 3) as a network's input (float32, B x 3 x H x W, about -2 to 2).

    The result is channels-last in memory: the pixels are only looked at differently, not moved.

    Args:
        standardize: give each channel of each picture mean 0 and variance 1, so that exposure and white balance
            say nothing.
    """
    images_BHWC = torch.as_tensor(pixels_BHWC).float()
    if standardize:
        places = images_BHWC.shape[1] * images_BHWC.shape[2]
        images_BHWC -= _channel_sums(images_BHWC) / places
        variance = _channel_sums(images_BHWC.square()) / (places - 1)
        images_BHWC /= variance.sqrt() + 1.0
    else:
        images_BHWC.sub_(_PIXEL_MEAN).div_(_PIXEL_SPREAD)
    return images_BHWC.permute(0, 3, 1, 2)


def _channel_sums(images_BHWC: Tensor) -> Tensor:
    """Over all places: B x 1 x 1 x C. Row by row first: fifteen times as fast as torch's own sum here."""
    return images_BHWC.flatten(2).sum(1).unflatten(1, images_BHWC.shape[2:]).sum(1)[:, None, None]


def best_device() -> torch.device:
    """A GPU of NVIDIA's where this process sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


class Embedder:
    """A network ready to embed preprocessed pixels, in batches padded to ``batch_size``.

    The shape of a batch decides the last bits of its results, so that it must not depend on how much is left. On a CPU
    batches hold at most 16: the maps of more do not fit its caches.

    Args:
        network: as it is now; what it learns later is not seen.
        dtype: what it computes with, float32 or bfloat16.
    """

    def __init__(self, network: EmbeddingNet, batch_size: int, dtype: torch.dtype = torch.float32) -> None:
        self.device = next(network.parameters()).device
        self.batch_size = min(batch_size, _CPU_BATCH) if self.device.type == "cpu" else batch_size
        is_bf16 = dtype == torch.bfloat16
        # Autocast casts all weights for each batch, FC1's alone take a tenth of its time. Networks with more than
        # convolutions and linear layers need it, though: their norms stay in float32.
        self._casts = is_bf16 and not isinstance(network, DamageNet)
        self.network = copy.deepcopy(network).to(dtype) if is_bf16 and not self._casts else network

    @torch.inference_mode()
    def __call__(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """Embeddings, B x D, float32."""
        vectors = np.empty((len(pixels_BHWC), self.network.embedding_size), np.float32)
        for start in range(0, len(pixels_BHWC), self.batch_size):
            batch = pixels_BHWC[start : start + self.batch_size]
            if len(batch) < self.batch_size:
                padding = np.zeros((self.batch_size - len(batch), *batch.shape[1:]), np.uint8)
                padded = np.concatenate([batch, padding])
            else:
                padded = batch
            images = self.network.prepare(torch.from_numpy(padded).to(self.device))
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._casts):
                out = self.network(images)
            vectors[start : start + len(batch)] = out[: len(batch)].cpu().numpy()
        return vectors


def embed_pixels(
    network: EmbeddingNet, pixels_BHWC: np.ndarray, batch_size: int, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """What an ``Embedder`` makes of preprocessed pixels, for those who ask once."""
    return Embedder(network, batch_size, dtype)(pixels_BHWC)


def load_network(weights: bytes, arguments: dict[str, Any], device: torch.device | str = "cpu") -> EmbeddingNet:
    """A network from safetensors weights and its card's arguments, ready to embed, channels-last.

    Raises:
        ContractError: weights and card do not fit each other.
        InputError: the card names a backbone that is not there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        network = build_network(**arguments)
        network.load_state_dict(load(weights))
    except (RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise ContractError(f"the model's weights do not fit its card ({_one_line(error)}). Train it again.") from error
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

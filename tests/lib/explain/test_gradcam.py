"""The closed form against autograd, and against loops over the definition."""

from __future__ import annotations

import pytest
import torch

from damage_atlas.explain.gradcam import deletion_scores, explain_batch, signed_maps
from damage_atlas.network import DamageNet, EmbeddingNet, build_network

pytestmark = pytest.mark.usefixtures("own_backbones")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(dtype: torch.dtype = torch.float32, size: int = 32) -> DamageNet:
    torch.manual_seed(0)
    return DamageNet(size).to(dtype)


def autograd_map(net: EmbeddingNet, image: torch.Tensor) -> torch.Tensor:
    features = net.features(image[None]).detach().requires_grad_()
    score = net.reduction(features).square().sum()
    (gradient,) = torch.autograd.grad(score, features)
    alpha = gradient.mean(dim=(2, 3), keepdim=True)
    return torch.relu((alpha * features).sum(dim=1))[0].detach()


def test_closed_form_equals_autograd_in_float32(images: torch.Tensor) -> None:
    net = network()
    maps = explain_batch(net, images)
    for image, fast in zip(images, maps, strict=True):
        slow = autograd_map(net, image)
        assert float((fast - slow).norm() / slow.norm()) < 1e-5


def test_closed_form_at_full_size() -> None:
    net = network(size=160)
    image = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    fast, slow = explain_batch(net, image)[0], autograd_map(net, image[0])
    assert fast.shape == (20, 20)
    assert float((fast - slow).norm() / slow.norm()) < 1e-5


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "table3", "pooling": "average"},
        {"kind": "mixer"},
        {"kind": "mixer", "pooling": "average"},
        {"kind": "custom", "module": "tests.support.backbone:SmallBackbone"},
    ],
    ids=str,
)
def test_closed_form_holds_for_every_network(images: torch.Tensor, arguments: dict[str, str]) -> None:
    torch.manual_seed(0)
    net = build_network(**arguments, input_size=32).double().eval()
    for image, fast in zip(images.double(), explain_batch(net, images.double()), strict=True):
        slow = autograd_map(net, image)
        assert slow.norm() > 0 and float((fast - slow).norm() / slow.norm()) < 1e-10


def test_equals_the_slow_version_in_float64(images: torch.Tensor) -> None:
    net = network(torch.float64)
    image = images[:1].double()
    features = net.features(image)[0].detach()
    m, h, w = features.shape
    weights = net.fc1.weight.detach().view(-1, m, h, w)
    units = net.reduction(features[None])[0].detach()
    slow = torch.zeros(h, w, dtype=torch.float64)
    for channel in range(m):
        alpha = 0.0
        for x in range(h):
            for y in range(w):
                for k in range(len(units)):
                    alpha += 2 * float(units[k]) * float(weights[k, channel, x, y])
        slow += alpha / (h * w) * features[channel]
    slow = torch.relu(slow)
    fast = explain_batch(net, image)[0]
    assert float((fast - slow).norm() / slow.norm()) < 1e-10


def test_hirescam_is_complete(images: torch.Tensor) -> None:
    net = network(torch.float64)
    maps = signed_maps(net, images.double(), "hirescam")
    units = net.reduction(net.features(images.double())).detach()
    expected = 2 * (units.square().sum(1) - units @ net.fc1.bias.detach())
    assert torch.allclose(maps.sum(dim=(1, 2)), expected, rtol=1e-10)


def test_no_gradients_are_left_behind(images: torch.Tensor) -> None:
    net = network()
    assert not explain_batch(net, images).requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_deletion_is_zero_for_a_flat_picture() -> None:
    net = network()
    flat = torch.full((1, 3, 32, 32), 0.7)
    assert float(deletion_scores(net, flat, torch.rand(1, 4, 4))) == pytest.approx(0, abs=1e-5)

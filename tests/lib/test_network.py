from __future__ import annotations

import numpy as np
import pytest
import torch

from damage_atlas.network import DamageNet, build_network, embed_pixels, to_input


@pytest.mark.parametrize(
    ("size", "parameters"),
    [(128, 4_291_408), (144, 5_405_520), (160, 6_650_704), (180, 8_026_960), (200, 10_337_104)],
)
def test_table_3_adds_up(size: int, parameters: int) -> None:
    assert sum(p.numel() for p in DamageNet(size).parameters()) == parameters


def test_odd_sizes_round_down() -> None:
    assert DamageNet(180)(torch.zeros(1, 3, 180, 180)).shape == (1, 16)


def test_layers_of_table_3() -> None:
    net = DamageNet()
    counts = [sum(p.numel() for p in layer.parameters()) for layer in net.children()]
    assert counts == [224, 2_336, 18_496, 73_856, 6_553_728, 2_064]
    assert net.features(torch.zeros(1, 3, 160, 160)).shape == (1, 128, 20, 20)


def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    net = DamageNet(32).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (21, 32, 32, 3), dtype=np.uint8)
    vectors = embed_pixels(net, pixels, 8)
    assert vectors.shape == (21, 16) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[16:], embed_pixels(net, pixels[16:], 8)), "padded batches: equal to the last bit"
    assert embed_pixels(net, pixels[:0], 8).shape == (0, 16)


def test_channels_last_changes_nothing() -> None:
    torch.manual_seed(0)
    net = DamageNet(32)
    images = to_input(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    plain = net(images.contiguous())
    fast = net.to(memory_format=torch.channels_last)(images)
    assert torch.allclose(plain, fast, atol=1e-5)


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="not known"):
        build_network("resnet")

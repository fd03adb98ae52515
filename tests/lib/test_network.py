from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch.nn import functional

from damage_atlas.errors import ContractError, InputError
from damage_atlas.network import CustomNet, DamageNet, build_network, embed_pixels, load_network, to_input

pytestmark = pytest.mark.usefixtures("own_backbones")

SMALL = "tests.support.backbone:SmallBackbone"
KINDS = [
    {"kind": "table3"},
    {"kind": "table3", "pooling": "average"},
    {"kind": "mixer"},
    {"kind": "mixer", "pooling": "average"},
    {"kind": "custom", "module": SMALL},
    {"kind": "custom", "module": SMALL, "arguments": {"width": 9}, "pooling": "average"},
]


@pytest.mark.parametrize(
    ("size", "parameters"),
    [(128, 4_291_408), (144, 5_405_520), (160, 6_650_704), (180, 8_026_960), (200, 10_337_104)],
)
def test_table_3_adds_up(size: int, parameters: int) -> None:
    assert sum(p.numel() for p in DamageNet(size).parameters()) == parameters


def test_odd_sizes_round_down() -> None:
    assert DamageNet(180)(torch.zeros(1, 3, 180, 180)).shape == (1, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [160, 180])
def test_pooling_gives_the_same_maps_with_and_without_gradients(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = DamageNet(size).to(dtype=dtype, memory_format=torch.channels_last)
    for images in (torch.randn(3, 3, size, size, dtype=dtype), torch.full((3, 3, size, size), torch.nan, dtype=dtype)):
        with torch.inference_mode():
            maps = net.features(images)
        assert torch.equal(maps.nan_to_num(7.0), net.features(images).nan_to_num(7.0))


def test_layers_of_table_3() -> None:
    net = DamageNet()
    counts = [sum(p.numel() for p in layer.parameters()) for layer in net.children()]
    assert counts == [224, 2_336, 18_496, 73_856, 6_553_728, 2_064]
    assert net.features(torch.zeros(1, 3, 160, 160)).shape == (1, 128, 20, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_before_relu_changes_no_bit(dtype: torch.dtype) -> None:
    """Of a network whose many equal values (a black half, few grey levels) make many equal maxima."""
    torch.manual_seed(0)
    net = DamageNet(36).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = torch.randint(0, 3, (4, 36, 36, 3), dtype=torch.uint8) * 127
    pixels[:, :18] = 0

    def as_printed(images: torch.Tensor) -> torch.Tensor:
        maps = functional.max_pool2d(torch.relu(net.conv1(images)), 2)
        maps = functional.max_pool2d(torch.relu(net.conv2(maps)), 2)
        maps = functional.max_pool2d(torch.relu(net.conv3(maps)), 2)
        return torch.relu(net.conv4(maps))

    weights = [layer.weight for layer in (net.conv1, net.conv2, net.conv3, net.conv4)]
    results = []
    for features in (net.features, as_printed):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            maps = features(net.prepare(pixels))
        results.append([maps, *torch.autograd.grad(maps.float().square().sum(), weights)])
    for mine, printed in zip(*results, strict=True):
        assert torch.equal(mine, printed)


def test_training_in_pieces_gives_the_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    net = DamageNet(160).double()
    images = torch.randn(24, 3, 160, 160, dtype=torch.float64)
    grown = torch.randn(24, 16, dtype=torch.float64)
    weights = [net.conv1.weight, net.conv4.weight, net.fc1.weight]
    in_pieces = torch.autograd.grad(net(images), weights, grown)
    each = [torch.autograd.grad(net(images[i : i + 8]), weights, grown[i : i + 8]) for i in (0, 8, 16)]
    for mine, *wanted in zip(in_pieces, *each, strict=True):
        assert torch.allclose(mine, sum(wanted), rtol=0, atol=1e-10 * float(mine.norm()))  # type: ignore[arg-type]
    pieces: list[int] = []
    net.conv1.register_forward_hook(lambda _module, _inputs, maps: pieces.append(len(maps)))
    net(images)
    assert pieces == [12, 12]


def test_average_pooling_leaves_the_size_out_of_the_weights() -> None:
    assert {sum(p.numel() for p in DamageNet(size, pooling="average").parameters()) for size in (128, 200)} == {113_488}


@pytest.mark.parametrize("arguments", KINDS, ids=str)
@pytest.mark.parametrize(("size", "dimensions"), [(128, 8), (144, 16), (160, 32), (180, 16), (200, 8)])
def test_sizes_of_the_ablations(arguments: dict[str, object], size: int, dimensions: int) -> None:
    net = build_network(**arguments, input_size=size, embedding_size=dimensions)  # type: ignore[arg-type]
    vectors = net(torch.zeros(2, 3, size, size))
    assert vectors.shape == (2, dimensions) and torch.allclose(vectors.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("arguments", KINDS, ids=str)
def test_reduction_is_linear_in_the_feature_maps(arguments: dict[str, object]) -> None:
    net = build_network(**arguments, input_size=64).double().eval()  # type: ignore[arg-type]
    features = net.features(torch.randn(2, 3, 64, 64, dtype=torch.float64))
    weights = net.reduction_weights(*features.shape[2:])
    units = torch.einsum("kmxy,bmxy->bk", weights, features) + net.fc1.bias
    assert torch.allclose(units, net.reduction(features), rtol=1e-10)


@pytest.mark.parametrize("arguments", KINDS, ids=str)
def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(arguments: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = build_network(**arguments, input_size=32).eval()  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (21, 32, 32, 3), dtype=np.uint8)
    vectors = embed_pixels(net, pixels, 8)
    assert vectors.shape == (21, 16) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[16:], embed_pixels(net, pixels[16:], 8)), "padded batches: equal to the last bit"
    assert embed_pixels(net, pixels[:0], 8).shape == (0, 16)


@pytest.mark.parametrize("arguments", KINDS, ids=str)
def test_channels_last_changes_nothing(arguments: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = build_network(**arguments, input_size=32)  # type: ignore[arg-type]
    images = to_input(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    plain = net(images.contiguous())
    fast = net.to(memory_format=torch.channels_last)(images)
    assert torch.allclose(plain, fast, atol=1e-5)


@pytest.mark.parametrize("arguments", KINDS, ids=str)
def test_a_card_and_weights_make_the_network_again(arguments: dict[str, object]) -> None:
    card = {**arguments, "input_size": 48, "embedding_size": 8}
    net = build_network(**card).eval()  # type: ignore[arg-type]
    again = load_network(save(net.state_dict()), card)
    images = torch.randn(2, 3, 48, 48)
    assert torch.allclose(net(images), again(images), atol=1e-6)
    with pytest.raises(ContractError, match="do not fit"):
        load_network(save(net.state_dict()), card | {"embedding_size": 9})


def test_a_backbone_is_trained_without_drops_or_statistics_of_its_own() -> None:
    net = CustomNet(SMALL, input_size=32).train()
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(net(images), net(images)), "dropout is off"
    assert torch.equal(net.state_dict()["backbone.norm.running_mean"], torch.zeros(6)), "nothing was added up"
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": "tests.support.no_such_module:Net"}, "cannot be imported.*install the package"),
        ({"module": "tests.support.backbone_that_fails:Net"}, "cannot be imported .OSError: libstem.*install the pack"),
        ({"module": "tests.support.backbone:OddBackbone"}, r"cannot be built with .*KeyError: 'stem'.*Mend"),
        (
            {"module": "tests.support.backbone:OddBackbone", "arguments": {"late": True}},
            r"fails on an image of 160 pixels .AssertionError: images of 64.*train\.input_size",
        ),
        ({"module": "tests.support.backbone:Nothing"}, "cannot be imported"),
        ({"module": "tests.support.backbone:torch"}, "no class of torch modules"),
        ({"module": SMALL, "arguments": {"depth": 3}}, "cannot be built with"),
        ({"module": SMALL, "input_size": 2}, "fails on an image of 2 pixels"),
        ({"module": "tests.support.backbone:PooledBackbone"}, r"makes \(1, 6\) of one image; a backbone makes feature"),
    ],
)
def test_backbones_that_cannot_be_used_say_why(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_network("custom", **arguments)


@pytest.mark.parametrize(
    ("allowed", "module", "answer"),
    [
        (
            "",
            SMALL,
            r"on this machine DAMAGE_ATLAS_MODULES allows no module.*set DAMAGE_ATLAS_MODULES=tests.support.backbone",
        ),
        ("timm, torchvision", SMALL, "allows timm, torchvision.*=timm,torchvision,tests.support.backbone wherever"),
        ("tests.support.back", SMALL, "not imported"),
        ("tests.support.backbone.more", SMALL, "not imported"),
        ("tests", "subprocess:Popen", "not imported"),
        ("tests", "tests.support.backbone", "names no backbone"),
        ("tests", "tests/../x:Net", "names no backbone"),
        ("tests", f"{SMALL}\n", "names no backbone"),
        ("tests", None, "names no backbone"),
        ("timm, tests", SMALL, None),
        ("tests.support.backbone", SMALL, None),
    ],
)
def test_a_model_card_does_not_choose_what_is_imported(
    monkeypatch: pytest.MonkeyPatch, allowed: str, module: str, answer: str | None
) -> None:
    card = {"kind": "custom", "module": SMALL, "input_size": 32}
    weights = save(build_network(**card).state_dict())  # type: ignore[arg-type]
    monkeypatch.setenv("DAMAGE_ATLAS_MODULES", allowed)
    if answer is None:
        assert load_network(weights, card | {"module": module}).embedding_size == 16
        return
    with pytest.raises(InputError, match=answer):
        load_network(weights, card | {"module": module})


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="not known"):
        build_network("resnet")

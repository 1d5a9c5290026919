"""The networks: names, sizes and initial values as in torchvision and the paper."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import nn

from trainer.config.options import Config
from trainer.model.resnet import MODELS, BasicBlock, Bottleneck, build_model

# SHA-256 of "name dtype shape" line by line of torchvision 0.28.0's state dicts, from
#     "".join(f"{k} {str(v.dtype).removeprefix('torch.')} {list(v.shape)}\n"
#             for k, v in torchvision.models.resnet50().state_dict().items())
TORCHVISION = {
    "resnet18": "529e30bc272976e686bcd4998bd77cf019b37c842bbcd6e16fc1b1170db7bb45",
    "resnet34": "01ec9df63cc4dcd41377b3df3568854797687f6b04b0c49c7d9012d8b1a1cb61",
    "resnet50": "0875ba6f0b7f1dca320de9f691b5230a990c7af0123b4bbd16bd2572c9a9e036",
    "resnet101": "5f48c9da9dd9192c3cc358d551e29c71a2e3a93e60d1311297d615985a4457e3",
}


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet50")


@pytest.mark.parametrize("name", TORCHVISION)
def test_state_dict_has_names_dtypes_shapes_and_order_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        state = build_model(name).state_dict()
    text = "".join(
        f"{k} {str(v.dtype).removeprefix('torch.')} {list(v.shape)}\n" for k, v in state.items()
    )
    assert hashlib.sha256(text.encode()).hexdigest() == TORCHVISION[name]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_state_dict_of_torchvision_gives_its_logits(name: str) -> None:
    models = pytest.importorskip("torchvision.models", exc_type=Exception)
    theirs, ours = getattr(models, name)().eval(), build_model(name).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet8", 52_624),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
    ],
)
def test_parameter_counts_for_1000_classes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_options_offer_exactly_the_networks_that_exist() -> None:
    for name in MODELS:
        Config(model=name)
    with pytest.raises(ValueError, match=", ".join(MODELS)):
        Config(model="resnet19")


def test_stride_is_in_the_3x3_of_a_bottleneck(resnet50: nn.Module) -> None:
    block = resnet50.get_submodule("layer2.0")
    strides = [block.get_submodule(f"conv{i}").stride for i in (1, 2, 3)]
    assert strides == [(1, 1), (2, 2), (1, 1)]


def test_convolutions_begin_with_he_fan_out_deviation(resnet50: nn.Module) -> None:
    for module in resnet50.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_classifier_begins_small_with_no_bias(resnet50: nn.Module) -> None:
    fc = resnet50.get_submodule("fc")
    assert fc.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert fc.bias.abs().max().item() == 0


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50"])
def test_only_the_last_norm_of_each_block_begins_at_zero(name: str) -> None:
    model = build_model(name, 10)
    last = {id(m.last_norm) for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck))}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert set(module.weight.tolist()) == {0.0 if id(module) in last else 1.0}


def test_gamma_1_is_the_usual_beginning() -> None:
    for module in build_model("resnet18", 10, gamma=1.0).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert set(module.weight.tolist()) == {1.0}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_each_block_begins_as_its_shortcut(name: str) -> None:
    block = build_model(name, 10).get_submodule("layer1.1")
    x = torch.randn(2, block.get_submodule("conv1").in_channels, 8, 8)
    torch.testing.assert_close(block(x), x.relu())


@pytest.mark.parametrize(("name", "side"), [("resnet8", 14), ("resnet8", 28), ("resnet18", 32)])
def test_logits_have_one_column_per_class_and_reach_every_parameter(name, side) -> None:
    model = build_model(name, 7)
    logits = model(torch.randn(2, 3, side, side))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_same_seed_gives_the_same_weights() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_model("resnet18", 10))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)

"""The networks: names, sizes and initial values as in torchvision and the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainer.model import MODELS, BasicBlock, Bottleneck, build_model
from trainer.options import Config


def names_of_resnet50() -> list[str]:
    """torchvision's state-dict names of ResNet-50, in order, from its naming rule."""

    def norm(name: str) -> list[str]:
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{name}.{kind}" for kind in kinds]

    names = ["conv1.weight", *norm("bn1")]
    for level, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            at = f"layer{level}.{block}"
            for i in (1, 2, 3):
                names += [f"{at}.conv{i}.weight", *norm(f"{at}.bn{i}")]
            if block == 0:
                names += [f"{at}.downsample.0.weight", *norm(f"{at}.downsample.1")]
    return [*names, "fc.weight", "fc.bias"]


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet50")


def test_resnet50_has_the_names_of_torchvision_in_order(resnet50: nn.Module) -> None:
    assert list(resnet50.state_dict()) == names_of_resnet50()
    assert len(resnet50.state_dict()) == 320
    assert len(list(resnet50.parameters())) == 161


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

"""--weights: a state dict from elsewhere, or one line that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.config.options import ConfigError
from trainer.model.pretrained import load_weights
from trainer.model.resnet import build_model


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(5)
    return build_model("resnet18", 10)


def saved(folder: Path, content: object) -> str:
    torch.save(content, folder / "weights.pth")
    return str(folder / "weights.pth")


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_weights_of_the_usual_layouts_arrive(tmp_path: Path, source, key, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    network = build_model("resnet18", 10)
    load_weights(network, saved(tmp_path, {key: state, "epoch": 3} if key else state))
    for ours, theirs in zip(
        network.state_dict().values(), source.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("model", "classes", "message"),
    [
        ("resnet18", 100, r"fc.weight is \[10, 512\], not \[100, 512\]; --data must have as many"),
        ("resnet34", 10, "has no layer1.2.conv1.weight; --model must be the network it is of"),
        ("resnet50", 10, r"layer1.0.conv1.weight is \[64, 64, 3, 3\], not .*; --model must fit"),
    ],
)
def test_another_network_is_named(tmp_path: Path, source, model, classes, message) -> None:
    file = saved(tmp_path, source.state_dict())
    with pytest.raises(ConfigError, match=message) as caught:
        load_weights(build_model(model, classes), file)
    assert str(caught.value).startswith(f"--weights {file}: ")
    assert "\n" not in str(caught.value)


def test_a_larger_network_is_named(tmp_path: Path) -> None:
    file = saved(tmp_path, build_model("resnet34", 10).state_dict())
    with pytest.raises(ConfigError, match=r"has layer1.2.conv1.weight, which the network has not"):
        load_weights(build_model("resnet18", 10), file)


class Planted:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict"),
        ({"model": 3}, "holds no state dict"),
        (Planted(), r"is no file of torch\.save with tensors alone"),
    ],
)
def test_a_file_of_something_else_is_refused_and_runs_nothing(
    tmp_path: Path, capsys, content, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_weights(nn.Linear(2, 2), saved(tmp_path, content))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("hello")
    with pytest.raises(ConfigError, match=r"is no file of torch\.save with tensors"):
        load_weights(nn.Linear(2, 2), str(tmp_path / "weights.pth"))

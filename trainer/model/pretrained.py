"""Weights to begin with: a state dict of torchvision's names, as ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.options import Config, ConfigError
from trainer.model.resnet import build_model

__all__ = ["check_weights", "load_weights"]


def load_weights(network: nn.Module, path: str) -> None:
    """Copies the state dict in a file, as `torch.save` writes it, into `network`.

    It may be an entry "model" or "state_dict" of a dictionary, as in checkpoints, and its names may
    begin with "module.". Nothing but tensors is unpickled. ConfigError, in one line, if the file is
    something else, or its names or shapes are not those of `network`.
    """
    network.load_state_dict(_fitting(network, path))


def check_weights(config: Config, classes: int) -> None:
    """Whether the file of --weights fits the network, which is not made. ConfigError as above."""
    with torch.device("meta"):
        network = build_model(config.model, classes)
    _fitting(network, config.weights)


def _fitting(network: nn.Module, path: str) -> Mapping[str, Tensor]:
    called = f"--weights {path}"
    try:
        content = torch.load(Path(path), map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises depends on what the file is instead
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"{called}: is no file of torch.save with tensors alone ({reason}); give a state dict"
        ) from None
    state = _state_dict(content, called)
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise ConfigError(f"{called}: has no {name}; --model must be the network it is of")
        if state[name].shape != tensor.shape:
            theirs, ours = list(state[name].shape), list(tensor.shape)
            hint = "--data must have as many classes" if name.startswith("fc.") else "--model"
            raise ConfigError(f"{called}: {name} is {theirs}, not {ours}; {hint} must fit")
    more = [name for name in state if name not in expected]
    if more:
        raise ConfigError(
            f"{called}: has {more[0]}, which the network has not; --model must be the network it "
            "is of"
        )
    return state


def _state_dict(content: Any, called: str) -> Mapping[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ConfigError(f"{called}: holds no state dict, names with tensors; give one")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}

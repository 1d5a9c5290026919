"""How the computation of a network is spread over its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["work_shares"]


def work_shares(network: nn.Module, side: int) -> list[float]:
    """Return the share of a pass that each parameter's layer takes, in the order of the parameters.

    It counts multiplications, of convolutions and linear layers. What has none takes no time.

    Args:
        network: on torch's meta device; it sees two images.
        side: pixels of the image.
    """
    work: dict[Tensor, float] = {}

    def note(module: Any, _: Any, output: Tensor) -> None:
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        work[module.weight] = work.get(module.weight, 0.0) + module.weight.numel() * positions

    hooks = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.no_grad():
            network(torch.empty(2, 3, side, side, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    whole = sum(work.values())
    return [work.get(parameter, 0.0) / whole for parameter in network.parameters()]

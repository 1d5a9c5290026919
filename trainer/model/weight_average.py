"""An average of the weights over the iterations, which is tested beside the weights."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["open_average"]


def open_average(network: nn.Module, decay: float) -> AveragedModel | None:
    """The exponential moving average of a network's weights and statistics; None for decay 0.

    Each `update_parameters` moves it to `decay` average + (1 - decay) weights; the first copies
    them. Make it before hooks are put on the network, which would be copied with it.
    """
    if not decay:
        return None
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)

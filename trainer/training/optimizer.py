"""The optimizer of a run."""

from __future__ import annotations

from torch import nn

from allreduce.optim import LARS, SGD, split_weight_decay
from trainer.config.options import Config

__all__ = ["build_optimizer"]


def build_optimizer(config: Config, network: nn.Module) -> SGD:
    """The optimizer that the configuration asks for; batch normalisation is not decayed."""
    groups = split_weight_decay(network, config.weight_decay)
    if config.optimizer == "lars":
        return LARS(groups, config.lr, config.momentum, trust=config.lars_trust)
    return SGD(groups, config.lr, config.momentum, form=config.sgd_form)

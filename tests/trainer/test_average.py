"""--ema: the average of the weights over the iterations."""

from __future__ import annotations

import torch
from torch import nn

from trainer.model.weight_average import open_average


def test_the_average_follows_its_formula_and_starts_as_a_copy() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = open_average(network, 0.75)
    assert average is not None
    expected = None
    for step in range(5):
        with torch.no_grad():
            for tensor in (*network.parameters(), network[1].running_mean):
                tensor.copy_(torch.full_like(tensor, float(step + 1)))
        average.update_parameters(network)
        expected = 1.0 if expected is None else 0.75 * expected + 0.25 * (step + 1)
    for tensor in (*average.module.parameters(), average.module[1].running_mean):
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected))


def test_a_decay_of_zero_keeps_no_average() -> None:
    assert open_average(nn.Linear(2, 2), 0.0) is None

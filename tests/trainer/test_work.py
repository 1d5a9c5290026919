"""How the computation of a network is spread over its parameters, and when gradients are ready."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.config.command_line import parse
from trainer.dry_run.communication import allreduces
from trainer.model.resnet import build_model
from trainer.model.work import work_shares


def test_multiplications_are_counted() -> None:
    with torch.device("meta"):
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),  # 108 weights at 64 places
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 2, 1, stride=2, bias=False),  # 8 weights at 16 places
            nn.Flatten(),
            nn.Linear(32, 10),  # 320 weights at one
        )
    whole = 108 * 64 + 8 * 16 + 320
    expected = [108 * 64 / whole, 0, 0, 8 * 16 / whole, 320 / whole, 0]
    assert work_shares(network, 8) == pytest.approx(expected)


def test_the_last_layers_are_ready_first() -> None:
    with torch.device("meta"):
        network = build_model("resnet50")
    calls = allreduces(parse(["--dry-run", "--world", "16"], {}), network, 224)
    ready = [call.ready for call in calls]
    assert ready == sorted(ready)
    assert ready[0] < 0.1  # the classifier and the last stage: many weights, little work
    assert ready[-1] == pytest.approx(1.0)
    assert sum(call.nbytes for call in calls) == 25_557_032 * 4

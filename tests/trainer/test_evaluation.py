"""Evaluation: each test image once, and whose batch normalisation statistics are used."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from worlds import run_threads

from trainer.data import DATASETS
from trainer.data.normalize import Normalize
from trainer.data.sampler import evaluation_batches
from trainer.training.evaluation import count_errors, mean_statistics, rank0_statistics, wearing

INFO = dataclasses.replace(DATASETS["digits"], side=2, mean=(0.0,), std=(1.0,))


class Network(nn.Module):
    """Answers class 1 for bright images, 0 for dark ones."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean((1, 2, 3))
        return torch.stack([0.5 - bright, bright - 0.5], 1)


def counted(size: int, batch: int, world_size: int) -> list[dict[str, Any]]:
    """Image i is bright if i is odd; its label says so, but for every third image."""

    def rank(comm) -> dict[str, Any]:
        def batch_of(indices: np.ndarray) -> tuple[Tensor, Tensor]:
            odd = torch.from_numpy(indices % 2)
            images = (255 * odd).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
            return images, torch.where(torch.from_numpy(indices % 3) == 0, 1 - odd, odd)

        shares = evaluation_batches(size, batch, comm.rank, comm.world_size)
        return count_errors(Network(), map(batch_of, shares), Normalize(INFO), comm)

    return run_threads(world_size, rank)


@settings(max_examples=12)
@given(size=st.integers(1, 40), batch=st.integers(1, 9), world_size=st.integers(1, 5))
def test_every_rank_knows_the_error_over_each_image_once(size, batch, world_size) -> None:
    loss = sum(np.log1p(np.exp(1.0 if i % 3 == 0 else -1.0)) for i in range(size)) / size
    for result in counted(size, batch, world_size):
        assert result["test_images"] == size
        assert result["test_error"] == pytest.approx(len(range(0, size, 3)) / size)
        assert result["test_loss"] == pytest.approx(loss, rel=1e-6)


def batch_norm(seen: Tensor) -> nn.BatchNorm1d:
    """A layer whose running statistics are exactly those of `seen` (rows)."""
    norm = nn.BatchNorm1d(seen.shape[1], momentum=1.0)
    norm.train()
    norm(seen)
    norm.running_var.copy_(seen.var(0, correction=0))
    return norm


WORLDS = [(1, 1), (2, 1), (3, 2), (1, 4)]  # processes, workers in each


@pytest.mark.parametrize(("processes", "workers"), WORLDS)
def test_pooled_statistics_are_those_of_all_images_together(processes, workers) -> None:
    seen = torch.randn(processes, workers, 50, 3) * 2 + torch.randn(processes, workers, 1, 3)

    def rank(comm) -> dict[str, Tensor]:
        norms = [batch_norm(images) for images in seen[comm.rank]]
        return mean_statistics([dict(norm.named_buffers()) for norm in norms], comm)

    everything = seen.flatten(0, 2).double()
    for pooled in run_threads(processes, rank):
        torch.testing.assert_close(pooled["running_mean"], everything.mean(0), rtol=1e-5, atol=1e-5)
        expected = everything.var(0, correction=0)
        torch.testing.assert_close(pooled["running_var"], expected, rtol=1e-5, atol=1e-5)


def test_statistics_of_rank0_are_everyones() -> None:
    def rank(comm) -> dict[str, Tensor]:
        torch.manual_seed(comm.rank)
        return rank0_statistics(batch_norm(torch.rand(9, 4) + comm.rank), comm)

    first, *others = run_threads(3, rank)
    assert set(first) == {"running_mean", "running_var", "num_batches_tracked"}
    assert first["running_mean"].max() < 1
    for other in others:
        for name, value in first.items():
            assert torch.equal(other[name], value)


def test_a_network_has_its_own_statistics_again_afterwards() -> None:
    norm = batch_norm(torch.randn(9, 4))
    own = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    other = {"running_mean": torch.ones(4), "running_var": torch.ones(4)}
    with wearing(norm, other):
        assert torch.equal(norm.running_mean, torch.ones(4))
        assert not norm.training
    for name, buffer in norm.named_buffers():
        assert torch.equal(buffer, own[name])

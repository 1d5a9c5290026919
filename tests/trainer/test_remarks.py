"""Remark 4 and footnote 5 of the paper, in f64: the right form, and that each wrong one differs.

Remarks 1 to 3 are about the optimizer and the loss: tests/optim/test_sgd.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from allreduce.optim import SGD
from allreduce.torch import DistributedDataParallel
from trainer.data.sampler import EpochSampler
from trainer.model import build_model
from trainer.virtual import VirtualWorkers

K, N = 4, 6  # workers, images of each
ITERATIONS = 3


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group("hier", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def network() -> nn.Module:
    torch.manual_seed(0)
    made = build_model("resnet8", 10, gamma=1).double()
    return made.train()


def minibatch(iteration: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1 + iteration)
    images = torch.randn(K * N, 3, 14, 14, dtype=torch.float64)
    return images, torch.randint(0, 10, (K * N,))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def distributed() -> Tensor:
    """k workers, each a network of its own with its own normalisation; gradients are summed."""
    workers = [network() for _ in range(K)]
    optimizers = [SGD(worker.parameters(), lr=0.1) for worker in workers]
    for iteration in range(ITERATIONS):
        images, labels = minibatch(iteration)
        for worker, its_images, its_labels in zip(
            workers, images.chunk(K), labels.chunk(K), strict=True
        ):
            worker.zero_grad()
            loss = F.cross_entropy(worker(its_images), its_labels, reduction="sum") / (K * N)
            loss.backward()
        for parameters in zip(*(worker.parameters() for worker in workers), strict=True):
            total = sum((p.grad for p in parameters[1:]), parameters[0].grad)
            for parameter in parameters:
                parameter.grad = total.clone()
        for optimizer in optimizers:
            optimizer.step()
    return weights(workers[0])


def accumulated(divisor: int) -> Tensor:
    """The trainer's way: workers take turns in one process, each loss being over `divisor`."""
    model = DistributedDataParallel(network(), op="sum")
    virtual = VirtualWorkers(model, count=K)
    optimizer = SGD(model.parameters(), lr=0.1)
    for iteration in range(ITERATIONS):
        for images, labels in virtual.turns(*minibatch(iteration)):
            loss = F.cross_entropy(model(images), labels, reduction="sum") / divisor
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(model.module)


def in_one_batch() -> Tensor:
    """Wrong: statistics over kn images instead of n."""
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    for iteration in range(ITERATIONS):
        images, labels = minibatch(iteration)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return weights(model)


def test_accumulation_equals_distribution() -> None:
    """Footnote 5: kn images in one process give the weights of k workers of n."""
    right = distributed()
    torch.testing.assert_close(accumulated(K * N), right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "wrong", [lambda: accumulated(N), lambda: accumulated(K), in_one_batch],
    ids=["by_n_instead_of_kn", "by_k_instead_of_kn", "one_normalisation_over_kn"],
)  # fmt: skip
def test_accumulating_otherwise_gives_other_weights(wrong) -> None:
    assert (wrong() - distributed()).abs().max() > 1e-3


SIZE = 600


def seen_in_an_epoch(samplers: Sequence[EpochSampler]) -> np.ndarray:
    return np.concatenate([batch for sampler in samplers for batch in sampler.epoch(1)])


def test_one_permutation_is_dealt_out_to_all_workers() -> None:
    """Remark 4: one random shuffling an epoch, divided among the k workers."""
    samplers = [
        EpochSampler(size=SIZE, batch=N, rank=rank, world_size=K, seed=0) for rank in range(K)
    ]
    seen = seen_in_an_epoch(samplers)
    assert sorted(seen.tolist()) == list(range(SIZE))


@pytest.mark.parametrize("seeds", [[0] * K, list(range(K))], ids=["alike", "each_its_own"])
def test_shuffles_of_each_worker_repeat_images_and_miss_others(seeds: list[int]) -> None:
    """Wrong: each worker takes its share of a shuffling of its own."""
    samplers = [
        EpochSampler(size=SIZE, batch=N, rank=0 if len(set(seeds)) == 1 else rank, world_size=K,
                     seed=seed)
        for rank, seed in enumerate(seeds)
    ]  # fmt: skip
    seen = seen_in_an_epoch(samplers)
    assert len(seen) == SIZE
    assert len(set(seen.tolist())) < SIZE


def test_the_epoch_of_one_minibatch_is_the_same_for_any_number_of_workers() -> None:
    """What the remark is for: runs of different k see the same images in the same iteration."""
    one = EpochSampler(size=SIZE, batch=K * N, rank=0, world_size=1, seed=0)
    many = [EpochSampler(size=SIZE, batch=N, rank=rank, world_size=K, seed=0) for rank in range(K)]
    shares = [copy.deepcopy(sampler).epoch(1) for sampler in many]
    for whole, *parts in zip(one.epoch(1), *shares, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), whole)

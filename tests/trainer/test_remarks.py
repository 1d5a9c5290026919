"""The pitfalls of section 3, Remarks 1 to 4, and footnote 5, in f64.

Each test shows that what the trainer does is right, and that the mistake that the paper warns of
would not pass the same comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from allreduce.optim import SGD, split_weight_decay
from allreduce.torch import DistributedDataParallel
from trainer.config.options import Config
from trainer.data.sampler import EpochSampler
from trainer.model.resnet import build_model
from trainer.training.learning_rate import Schedule
from trainer.training.loop import share_of_loss
from trainer.training.virtual_workers import VirtualWorkers

K, N, STEPS, DECAY = 4, 8, 20, 1e-2  # workers, images each, iterations
KN = K * N
ETA = 0.02  # of a minibatch of n images
RIGHT, WRONG = 1e-12, 1e-3  # of the largest weight: at most, at least

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small an operation is not worth a second one
    dist.init_process_group("hier", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", 4, gamma=1.0).double()


def minibatch(step: int) -> tuple[Tensor, Tensor]:
    """kn images, those of worker 0 first."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(KN, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (KN,), generator=generator)


def optimizer_of(model: nn.Module, **options) -> SGD:
    return SGD(split_weight_decay(model, DECAY), lr=K * ETA, **options)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def in_turn(divisor: int = KN, rates: Callable[[int], float] | None = None, **options) -> Tensor:
    """Weights after STEPS iterations of k virtual workers: the trainer's own step.

    `divisor` is what the step divides each worker's summed loss by; `rates` is eta by iteration.
    """
    model = DistributedDataParallel(network(), op="sum")
    virtual, optimizer = VirtualWorkers(model, count=K), optimizer_of(model.module, **options)
    for step in range(STEPS):
        for images, labels in virtual.turns(*minibatch(step)):
            share_of_loss(model(images), labels, divisor).backward()
        for parameters in optimizer.param_groups:
            parameters["lr"] = rates(step) if rates else K * ETA
        optimizer.step()
        optimizer.zero_grad()
    return weights(model.module)


def by_equation_8(scale: float = 1.0, eta: float = K * ETA) -> Tensor:
    """k workers with networks of their own, by hand: w <- w - eta (lambda w + mean gradient).

    With momentum by equation (9). `scale` multiplies the loss.
    """
    replicas = [network() for _ in range(K)]
    columns = list(zip(*(r.parameters() for r in replicas), strict=True))
    spared = {p for group in split_weight_decay(replicas[0], 0.0)[1:] for p in group["params"]}
    velocities = [torch.zeros_like(column[0]) for column in columns]
    for step in range(STEPS):
        images, labels = minibatch(step)
        for worker, replica in enumerate(replicas):
            mine = slice(worker * N, (worker + 1) * N)
            replica.zero_grad()
            F.cross_entropy(replica(images[mine]), labels[mine]).backward()
        with torch.no_grad():
            for column, u in zip(columns, velocities, strict=True):
                mean = scale * torch.stack([p.grad for p in column]).mean(0)
                g = mean + (0.0 if column[0] in spared else DECAY) * column[0]
                u.mul_(0.9).add_(g)
                for p in column:
                    p.sub_(eta * (g + 0.9 * u))
    return weights(replicas[0])


@pytest.fixture(scope="module")
def trained() -> Tensor:
    return in_turn()


@pytest.fixture(scope="module")
def reference() -> Tensor:
    return by_equation_8()


def test_footnote_5_workers_in_turn_are_workers_apart(trained, reference) -> None:
    assert distance(trained, reference) < RIGHT


@pytest.mark.parametrize("divisor", [N, K])
def test_footnote_5_accumulation_with_a_wrong_divisor_is_something_else(reference, divisor) -> None:
    assert distance(in_turn(divisor=divisor), reference) > WRONG


def test_footnote_5_one_large_batch_is_something_else(reference) -> None:
    """It would have the batch normalisation statistics of kn images (section 2.3)."""
    model = network()
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        images, labels = minibatch(step)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert distance(weights(model), reference) > WRONG


def test_remark_1_scaling_the_loss_is_not_scaling_the_rate(trained) -> None:
    assert distance(trained, by_equation_8(scale=1, eta=K * ETA)) < RIGHT
    assert distance(trained, by_equation_8(scale=K, eta=ETA)) > WRONG


SCHEDULES = {
    "gradual": Config(warmup_epochs=1.0, lr=0.4, milestones=(4.0,)),
    "constant": Config(warmup="constant", warmup_epochs=2.0, lr=0.4, milestones=(4.0,)),
    "cosine": Config(warmup_epochs=1.0, lr=0.4, schedule="cosine"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_remark_2_the_absorbed_form_needs_the_correction_where_eta_changes(name: str) -> None:
    rates = Schedule.from_config(SCHEDULES[name], STEPS // 5)
    reference = in_turn(rates=rates)
    assert distance(in_turn(rates=rates, form="absorbed"), reference) < RIGHT
    uncorrected = in_turn(rates=rates, form="absorbed", momentum_correction=False)
    assert distance(uncorrected, reference) > WRONG


def test_remark_3_losses_are_divided_by_kn_and_k_is_not_cancelled(trained, reference) -> None:
    assert distance(trained, reference) < RIGHT
    by_n = in_turn(divisor=N)  # gradients k times too large
    cancelled = in_turn(divisor=N, rates=lambda step: ETA)  # eta for eta k, 1/n for 1/(kn)
    assert distance(by_n, reference) > WRONG
    assert distance(cancelled, reference) > WRONG


SIZE, EPOCHS = 128, 6
Epochs = list[list[np.ndarray]]  # by epoch and worker, the images that it sees, in order


def is_one_shuffling_shared_out(epochs: Epochs) -> bool:
    """Each epoch every image once, and not always with the same worker."""
    for workers in epochs:
        if sorted(np.concatenate(workers).tolist()) != list(range(SIZE)):
            return False
    owners = [
        tuple(next(w for w, seen in enumerate(workers) if image in seen) for image in range(SIZE))
        for workers in epochs
    ]
    return len(set(owners)) == len(epochs)


def shuffles(of_worker: Callable[[int, int], np.ndarray]) -> Epochs:
    return [[of_worker(epoch, worker) for worker in range(K)] for epoch in range(EPOCHS)]


def shuffled(seed: int, images: np.ndarray | int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).permutation(images)


def test_remark_4_workers_share_one_shuffling() -> None:
    def ours(epoch: int, rank: int) -> np.ndarray:
        sampler = EpochSampler(size=SIZE, batch=N, rank=rank, world_size=K, seed=0)
        return np.concatenate(list(sampler.epoch(epoch)))

    assert is_one_shuffling_shared_out(shuffles(ours))


@pytest.mark.parametrize(
    "of_worker",
    [
        pytest.param(lambda epoch, w: shuffled(100 * epoch + w)[: SIZE // K], id="overlap"),
        pytest.param(lambda epoch, w: shuffled(epoch)[: SIZE // K], id="repeat"),
        pytest.param(lambda epoch, w: shuffled(0)[w::K], id="never shuffled again"),
        pytest.param(
            lambda epoch, w: shuffled(epoch, np.arange(w, SIZE, K)), id="a fixed part for each"
        ),
    ],
)
def test_remark_4_shuffles_of_each_worker_s_own_are_found_out(of_worker) -> None:
    assert not is_one_shuffling_shared_out(shuffles(of_worker))

"""Where and how a process computes: defaults, refusals, and fp16's scaler beside the allreduce."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from worlds import run_threads

from allreduce.optim import SGD
from trainer.config.options import Config, ConfigError
from trainer.model.precision import Precision, choose_device, make_deterministic
from trainer.model.resnet import build_model

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="states what holds without a GPU")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "cpu, f32"),
        ({"device": "cpu", "precision": "bf16"}, "cpu, bf16"),
        ({"channels_last": "on"}, "cpu, f32, channels last"),
    ],
)
def test_without_a_gpu_it_is_f32_unless_told_otherwise(options, words: str) -> None:
    assert str(Precision(Config(**options))) == words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda", "workers": 1}, "--device cuda: torch finds no GPU here"),
        ({"cuda_graphs": True}, "--cuda-graphs: there is no GPU here; leave it out"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_line(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Precision(Config(**options))


@pytest.mark.parametrize(
    ("asked", "gpus", "processes", "device"),
    [
        ("auto", 0, 2, "cpu"),
        ("auto", 2, 2, "cuda:1"),
        ("auto", 1, 2, "cpu"),
        ("cuda", 8, 2, "cuda:1"),
        ("cpu", 8, 2, "cpu"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(asked, gpus, processes, device) -> None:
    chosen = choose_device(asked, gpus=gpus, local_rank=1, local_processes=processes)
    assert chosen == torch.device(device)


def test_tasks_that_see_one_gpu_each_take_it(monkeypatch) -> None:
    """As with `srun --gpus-per-task=1`: 8 processes of a machine, and each finds one GPU."""
    mine = threading.local()
    pretend_gpus(monkeypatch, lambda: mine.uuid)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")

    def body(comm):
        mine.uuid = f"GPU-{comm.rank}"
        return str(Precision(Config(workers=8, device="auto"), comm))

    assert run_threads(8, body) == ["cuda, bf16, channels last"] * 8


def test_tasks_that_share_one_gpu_say_so_and_use_the_cpu(monkeypatch) -> None:
    pretend_gpus(monkeypatch, lambda: "GPU-0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")

    def body(comm):
        with pytest.raises(ConfigError, match="2 processes on this machine have 1 GPU between"):
            Precision(Config(workers=2, device="cuda"), comm)
        return str(Precision(Config(workers=2), comm))

    words = "cpu (GPUs that 2 processes see here: 1, and each needs its own), f32"
    assert run_threads(2, body) == [words] * 2


def pretend_gpus(monkeypatch, uuid) -> None:
    """Has torch find one GPU, and allow to choose it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    properties = lambda index: SimpleNamespace(uuid=uuid())  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: scaler("cpu", enabled=enabled)
    )


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"4 processes .* have 2 GPUs .* --workers-virtual"):
        choose_device("cuda", gpus=2, local_rank=0, local_processes=4)


@pytest.mark.parametrize("name", ["f32", "bf16", "fp16"])
def test_weights_and_gradients_stay_f32_and_training_learns(name: str) -> None:
    torch.manual_seed(0)
    precision = Precision(Config(precision=name, channels_last="on"))
    network = precision.place(build_model("resnet8", 4))
    optimizer = SGD(network.parameters(), lr=0.05)
    images = torch.randn(16, 3, 16, 16).to(memory_format=precision.memory_format)
    labels = torch.arange(16) % 4
    losses = []
    for _ in range(12):
        with precision.autocast():
            logits = network(images)
        assert logits.dtype == {"f32": torch.float32, "bf16": torch.bfloat16}.get(
            name, torch.float16
        )
        loss = nn.functional.cross_entropy(logits.float(), labels)
        precision.scaled(loss).backward()
        precision.step(optimizer)
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_channels_last_changes_strides_and_no_name() -> None:
    network = Precision(Config(channels_last="on")).place(build_model("resnet18", 10))
    assert network.get_parameter("layer1.0.conv1.weight").is_contiguous(
        memory_format=torch.channels_last
    )
    assert list(network.state_dict()) == list(build_model("resnet18", 10).state_dict())


class Worker:
    """A worker with one weight, in fp16."""

    def __init__(self) -> None:
        self.precision = Precision(Config(precision="fp16"))
        self.weight = nn.Parameter(torch.ones(3))
        self.optimizer = SGD([self.weight], lr=0.1, weight_decay=0.0)

    def backward(self, slope: float) -> torch.Tensor:
        """The worker's own gradient, with the scale."""
        (gradient,) = torch.autograd.grad(
            self.precision.scaled((slope * self.weight).sum()), [self.weight]
        )
        return gradient


@pytest.mark.parametrize(("slopes", "factor"), [((0.5, 0.25), 1.0), ((0.5, float("inf")), 0.5)])
def test_an_overflow_of_one_worker_makes_all_skip_and_lower_the_scale(slopes, factor) -> None:
    workers = [Worker(), Worker()]
    before = workers[0].precision.scaler.get_scale()
    reduced = sum(w.backward(slope) for w, slope in zip(workers, slopes, strict=True))
    for worker in workers:
        worker.weight.grad = reduced.clone()
        worker.precision.step(worker.optimizer)
        assert worker.precision.scaler.get_scale() == factor * before
    assert torch.equal(workers[0].weight, workers[1].weight)
    moved = not torch.equal(workers[0].weight, torch.ones(3))
    assert moved == (factor == 1.0)


def test_looking_before_the_reduction_would_part_the_workers() -> None:
    workers = [Worker(), Worker()]
    own = [w.backward(slope) for w, slope in zip(workers, (0.5, float("inf")), strict=True)]
    for worker, gradient in zip(workers, own, strict=True):
        worker.weight.grad = gradient
        worker.precision.scaler.unscale_(worker.optimizer)
        worker.precision.step(worker.optimizer)
    scales = [worker.precision.scaler.get_scale() for worker in workers]
    assert scales[0] != scales[1]
    assert not torch.equal(workers[0].weight, workers[1].weight)


def test_an_update_is_that_of_f32_whatever_the_scale() -> None:
    worker = Worker()
    worker.weight.grad = worker.backward(0.5)
    worker.precision.step(worker.optimizer)
    plain = nn.Parameter(torch.ones(3))
    plain.grad = torch.full((3,), 0.5)
    SGD([plain], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(worker.weight, plain)


def test_deterministic_mode_reaches_torch() -> None:
    try:
        make_deterministic(Config(deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    make_deterministic(Config())
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_compiled_network_has_its_names_and_its_logits() -> None:
    torch.manual_seed(0)
    network = build_model("resnet8", 4)
    images = torch.randn(4, 3, 16, 16)
    expected = network(images)
    precision = Precision(Config(compile=True))
    precision.speed_up(network, Config(compile=True))
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
    assert list(network.state_dict()) == list(build_model("resnet8", 4).state_dict())

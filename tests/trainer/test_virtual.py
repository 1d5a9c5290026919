"""Virtual workers: the same mathematics as processes, and for the loop the same bits."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from allreduce.optim import SGD
from allreduce.torch import DistributedDataParallel, communicator
from trainer.config.command_line import parse
from trainer.config.options import ConfigError
from trainer.model.ghost_batch_norm import GhostBatchNorm2d, ghost
from trainer.model.resnet import build_model
from trainer.training.evaluation import mean_statistics
from trainer.training.virtual_workers import VirtualWorkers

# A job of the trainer whose processes leave their weights and statistics behind.
JOB = """
import os, sys
from trainer.config.command_line import parse
from trainer.launch.local_processes import launch, run_worker
config = parse(sys.argv[1:], os.environ)
if "RANK" not in os.environ:
    sys.exit(launch(config, (sys.executable, __file__)))
import torch
from trainer.training import worker
summarize = worker.summarize
def save_and_summarize(job):
    torch.save(job.model.module.state_dict(), f"{config.out}/weights{job.comm.rank}.pt")
    torch.save(job.virtual.state_dict(), f"{config.out}/statistics{job.comm.rank}.pt")
    return summarize(job)
worker.summarize = save_and_summarize
sys.exit(run_worker(lambda: worker.work(config)))
"""
N = 4  # images of a worker


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group("hier", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrapped(network: nn.Module) -> DistributedDataParallel:
    return DistributedDataParallel(network, op="sum")


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = build_model("resnet8", 10).double()
    for module in network.modules():  # a block that starts as its shortcut has no gradient inside
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network


def batch(workers: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    images = torch.randn(workers * N, 3, 14, 14, dtype=torch.float64)
    return images, torch.randint(0, 10, (workers * N,))


def train(virtual: VirtualWorkers, model: nn.Module, iterations: int) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    for iteration in range(iterations):
        images, labels = batch(virtual.count, seed=iteration)
        for its_images, its_labels in virtual.turns(images, labels):
            loss = F.cross_entropy(model(its_images), its_labels, reduction="sum")
            torch.autograd.backward(loss / len(images))
        optimizer.step()
        optimizer.zero_grad()


def tree_sum(parts: list[Tensor]) -> Tensor:
    """tree(p) = tree(largest power of two <= p) + tree(the rest), halves of a power being alike."""
    if len(parts) == 1:
        return parts[0]
    left = 1 << (len(parts) - 1).bit_length() - 1
    return tree_sum(parts[:left]) + tree_sum(parts[left:])


@pytest.mark.parametrize("workers", [2, 3, 4, 5, 6, 7, 8, 13])
def test_gradients_are_added_along_the_tree(workers: int) -> None:
    model = wrapped(nn.Linear(50, 1, bias=False))
    virtual = VirtualWorkers(model, count=workers)
    images = torch.randn(workers, 50)
    for row, _ in virtual.turns(images, torch.zeros(workers)):
        model(row).sum().backward()
    gradient = model.module.weight.grad[0]
    assert torch.equal(gradient, tree_sum(list(images)))
    if workers > 3:
        assert not torch.equal(gradient, sum(images[1:], images[0]))


def test_each_worker_has_the_statistics_of_its_own_images() -> None:
    network = small_network()
    alone = [copy.deepcopy(network) for _ in range(3)]
    model = wrapped(network)
    virtual = VirtualWorkers(model, count=3, rank=2)
    images, labels = batch(3)
    for its_images, _ in virtual.turns(images, labels):
        model(its_images).sum().backward()
    state = virtual.state_dict()
    for worker, other in enumerate(alone):
        other(images[worker * N : (worker + 1) * N])
        for name, buffer in other.named_buffers():
            assert torch.equal(state[f"{6 + worker}.{name}"], buffer), name
    for name, buffer in network.named_buffers():  # between iterations it wears the first worker's
        assert torch.equal(buffer, state[f"6.{name}"])


@pytest.mark.parametrize("as_ghost", [False, True])
def test_state_travels_from_one_job_to_another(as_ghost: bool) -> None:
    def job(seed: int, iterations: int) -> VirtualWorkers:
        network = small_network(seed)
        if as_ghost:
            ghost(network, 3)
        model = wrapped(network)
        virtual = VirtualWorkers(model, count=3)
        train(virtual, model, iterations)
        return virtual

    old, new = job(0, 2), job(1, 0)
    new.load_state_dict(old.state_dict())
    for name, buffer in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], buffer), name


def test_ghost_normalisation_is_the_same_mathematics() -> None:
    networks = [small_network(), small_network()]
    ghost(networks[1], 4)
    assert any(isinstance(module, GhostBatchNorm2d) for module in networks[1].modules())
    states = []
    for network in networks:
        model = wrapped(network)
        virtual = VirtualWorkers(model, count=4)
        train(virtual, model, 5)
        states.append({**network.state_dict(), **virtual.state_dict()})
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_a_ghost_that_is_moved_still_has_the_statistics_of_all_workers() -> None:
    network = small_network()
    ghost(network, 2)
    network.float().double()
    virtual = VirtualWorkers(model := wrapped(network), count=2)
    train(virtual, model, 1)
    state = virtual.state_dict()
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, state[f"0.{name}"]), name
    assert not torch.equal(state["0.bn1.running_mean"], state["1.bn1.running_mean"])


def test_one_batch_of_all_workers_would_be_another_network() -> None:
    networks = [small_network(), small_network()]
    for network, count in zip(networks, (4, 1), strict=True):
        model = wrapped(network)
        virtual = VirtualWorkers(model, count=count)
        images, labels = batch(4)
        for its_images, its_labels in virtual.turns(images, labels):
            F.cross_entropy(model(its_images), its_labels, reduction="sum").backward()
    gradients = [network.get_parameter("conv1.weight").grad for network in networks]
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm()


def test_evaluation_can_pool_the_statistics_of_all_workers() -> None:
    model = wrapped(small_network())
    virtual = VirtualWorkers(model, count=3)
    train(virtual, model, 1)
    pooled = mean_statistics(virtual.statistics(), communicator())
    means = [virtual.state_dict()[f"{worker}.bn1.running_mean"] for worker in range(3)]
    torch.testing.assert_close(pooled["bn1.running_mean"], sum(means) / 3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory):
    """The state of each process after 20 iterations of four workers, by workers per process."""
    folder = tmp_path_factory.mktemp("layouts")
    script = folder / "job.py"
    script.write_text(JOB)
    states = {}
    for virtual in (1, 2, 4):
        out = folder / f"{virtual}"
        command = [
            *(sys.executable, str(script), "--model=resnet8", "--workers=4", "--batch=8"),
            *(
                f"--workers-virtual={virtual}",
                "--threads=1",
                "--deterministic",
                "--max-iterations=20",
                "--epochs=1",
            ),
            *("--algo=halving_doubling", "--lr=0.4", f"--out={out}"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        files = [[out / f"{kind}{rank}.pt" for rank in range(4 // virtual)] for kind in KINDS]
        states[virtual] = [[torch.load(f, weights_only=True) for f in kind] for kind in files]
    return states


KINDS = ("weights", "statistics")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("virtual", [2, 4])
def test_processes_and_virtual_workers_give_the_same_bits(weights, virtual: int) -> None:
    real, ours = (weights[v][0][0] for v in (1, virtual))
    assert real.keys() == ours.keys()
    for name, value in real.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.timeout(400)
@pytest.mark.parametrize("virtual", [2, 4])
def test_statistics_are_those_of_the_same_worker_in_any_layout(weights, virtual: int) -> None:
    real, ours = (
        {name: value for state in weights[v][1] for name, value in state.items()}
        for v in (1, virtual)
    )
    assert real.keys() == ours.keys()
    assert any(name.startswith("3.") for name in real)
    for name, value in real.items():
        assert torch.equal(ours[name], value), name


def test_virtual_workers_alone_mean_one_process() -> None:
    config = parse(["--workers-virtual=8"], {})
    assert (config.workers, config.processes, config.nodes, config.minibatch) == (8, 1, 1, 256)


def test_under_a_launcher_each_process_has_its_virtual_workers() -> None:
    environ = {**LAUNCHER, "RANK": "1"}
    config = parse(["--workers-virtual=4"], environ)
    assert (config.workers, config.processes) == (12, 3)


LAUNCHER = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--workers=6", "--workers-virtual=4"], {}, "--workers 6: give a multiple of --workers-v"),
        (["--workers-virtual=0"], {}, "--workers-virtual 0: give a whole number from 1 up"),
        (["--workers-virtual=2", "--workers=4", "--nodes=3"], {}, "--nodes 3: at most 2, one proc"),
        (["--workers-virtual=2", "--workers=4"], {**LAUNCHER, "RANK": "0"},
         "--workers 4: the launcher started 3 with 2 workers each"),
    ],
)  # fmt: skip
def test_a_layout_that_cannot_be_is_refused(argv, environ, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(argv, environ)

"""ShardedSGD's one kernel, as its body on the CPU, beside its three calls."""

import host_fused
import torch
from harness import RANK, WORLD_SIZE, main, raises
from models import alike, near, network, step
from sharded_sgd import OPTIONS, groups, same_bits, sharded, trained
from torch import nn

import allreduce
from allreduce.optim import SGD
from allreduce.torch import ShardedSGD, communicator

KERNELS = host_fused.install()


def check_it_takes_the_same_steps_as_three_calls() -> None:
    for op in ("mean", "sum"):
        KERNELS.steps = 0
        found = trained(torch.float32, op=op)
        assert KERNELS.steps == 5 * 3  # steps, groups
        expected = trained(torch.float32, op=op, fused=False, algo="halving_doubling")
        assert KERNELS.steps == 5 * 3
        assert near(found, expected, 1e-6), op
        assert all(alike(p) for p in found)


def check_it_has_the_bits_of_three_calls() -> None:
    """With sizes that leave torch's kernel no rest, and a scale that rounds nothing."""
    found = []
    for fused in (True, False):
        torch.manual_seed(2)
        module = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48))
        options = {**OPTIONS, "op": "sum" if WORLD_SIZE == 3 else "mean"}
        optimizer = ShardedSGD(module.parameters(), **options, fused=fused, algo="halving_doubling")
        generator = torch.Generator().manual_seed(RANK)
        for _ in range(5):
            optimizer.zero_grad()
            (module(torch.randn(9, 32, generator=generator)).square().mean() / 8).backward()
            optimizer.step()
        found.append(list(module.parameters()))
    uses_fma = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    assert same_bits(*found) if uses_fma else near(*found)


def check_plain_momentum_and_none() -> None:
    for options in ({"nesterov": False}, {"momentum": 0.0}, {"momentum": 0.0, "nesterov": False}):
        found = []
        for fused in (True, False):
            torch.manual_seed(3)
            module = nn.Linear(7, 5)
            optimizer = ShardedSGD(module.parameters(), **{**OPTIONS, **options}, fused=fused)
            for seed in range(3):
                optimizer.zero_grad()
                torch.manual_seed(seed + RANK)
                module(torch.randn(4, 7)).square().sum().backward()
                optimizer.step()
            found.append(list(module.parameters()))
        assert near(*found), options


def check_states_go_from_one_to_the_other() -> None:
    module, first = sharded(torch.float32, fused=True)
    twin, second = sharded(torch.float32, fused=False)
    for seed in range(2):
        first.zero_grad()
        step(module, seed)
        first.step()
    twin.load_state_dict(module.state_dict())
    second.load_state_dict(first.state_dict())
    third = network()
    third.load_state_dict(module.state_dict())
    resumed = ShardedSGD(groups(third), **OPTIONS, fused=True)
    resumed.load_state_dict(second.state_dict())
    for seed in range(2, 4):
        for each, its in ((module, first), (twin, second), (third, resumed)):
            its.zero_grad()
            step(each, seed)
            its.step()
    assert near(list(module.parameters()), list(twin.parameters()))
    assert same_bits(list(module.parameters()), list(third.parameters()))
    other = SGD(groups(network()), **OPTIONS)
    other.load_state_dict(first.state_dict())


def check_what_it_cannot_do_has_a_reason() -> None:
    for kind, fused, words in (
        (torch.float64, None, "parameters are float64, and it takes float32"),
        (torch.float32, False, "fused=False asks for it"),
    ):
        _, optimizer = sharded(kind, fused=fused)
        assert not optimizer.fused
        assert optimizer.why_not_fused == words, optimizer.why_not_fused
    _, optimizer = sharded(torch.float32)
    assert optimizer.fused
    assert optimizer.why_not_fused == ""
    found = raises(allreduce.UsageError, lambda: sharded(torch.float64, fused=True))
    assert "fused=True: parameters are float64" in found, found
    before, host_fused.step_by_kernel.kernels_on = (
        host_fused.step_by_kernel.kernels_on,
        (lambda device: None if RANK == 1 else KERNELS),
    )
    _, optimizer = sharded(torch.float32)
    host_fused.step_by_kernel.kernels_on = before
    reason = "there is no kernel for parameters on cpu" if RANK == 1 else "it cannot be on rank 1"
    assert optimizer.why_not_fused == reason, optimizer.why_not_fused
    asked = raises(allreduce.MismatchError, lambda: sharded(torch.float32, fused=RANK == 1 or None))
    assert ("fused=" in asked) == (RANK == 1), asked


def check_rates_that_differ_are_told_at_the_next_step() -> None:
    """The last check: the group is of no use afterwards."""
    comm = communicator().split(0)
    module, optimizer = sharded(torch.float32)
    optimizer._steps._comm = comm  # the process group goes on
    optimizer.param_groups[0]["lr"] = 1.0 + RANK
    optimizer.zero_grad()
    step(module)
    optimizer.step()
    raises(allreduce.MismatchError, optimizer.step)


if __name__ == "__main__":
    main(dict(globals()))

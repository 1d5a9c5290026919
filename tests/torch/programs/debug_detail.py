"""TORCH_DISTRIBUTED_DEBUG=DETAIL, which wraps the backend, and what the profiler sees."""

import time
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises
from models import alike, near, network, step
from replicas import Plain, Replicas, sgd, weights
from torch.nn.parallel import DistributedDataParallel

import allreduce

ALL = range(WORLD_SIZE)
TOTAL = WORLD_SIZE * (WORLD_SIZE + 1) / 2


def mine(count: int = 4) -> torch.Tensor:
    return torch.full((count,), RANK + 1.0)


def check_the_backend_is_wrapped_and_found() -> None:
    assert dist.get_debug_level() == dist.DebugLevel.DETAIL
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    assert type(backend).__name__ == "_ProcessGroupWrapper"
    assert allreduce.torch.communicator().world_size == WORLD_SIZE


def check_collectives_are_right() -> None:
    x = mine()
    dist.all_reduce(x)
    assert x.tolist() == [TOTAL] * 4
    x = mine()
    dist.broadcast(x, WORLD_SIZE - 1)
    assert x.tolist() == [WORLD_SIZE] * 4
    parts = [torch.empty(4) for _ in ALL]
    dist.all_gather(parts, mine())
    assert [part[0].item() for part in parts] == [rank + 1 for rank in ALL]
    whole = torch.empty(4 * WORLD_SIZE)
    dist.all_gather_into_tensor(whole, mine())
    assert torch.equal(whole, torch.cat(parts))
    dist.reduce_scatter_tensor(x, whole)
    assert x.tolist() == [WORLD_SIZE * (RANK + 1.0)] * 4
    dist.reduce(x, 0)
    dist.barrier()


def check_ddp_trains() -> None:
    model = DistributedDataParallel(network(Plain))
    optimizer = sgd(model.parameters())
    for seed in range(2):
        step(model, seed)
        optimizer.step()
        optimizer.zero_grad()
    assert near(weights(model), weights(Replicas(Plain).train(range(2))), 1e-5)
    assert all(alike(p) for p in model.parameters())


def check_unlike_shapes_are_explained() -> None:
    group = dist.new_group()
    x = torch.ones(3 if RANK == 0 else 4)
    message = raises(RuntimeError, lambda: dist.all_reduce(x, group=group))
    assert "ALLREDUCE" in message, message


def check_unlike_collectives_are_explained() -> None:
    group = dist.new_group()
    x = torch.ones(3)

    def call() -> None:
        if RANK == 0:
            dist.all_reduce(x, group=group)
        else:
            dist.broadcast(x, 1, group=group)

    message = raises(RuntimeError, call)
    assert "ALLREDUCE" in message, message
    assert "BROADCAST" in message, message


def events(call: Callable[[], object]) -> list[str]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        call()
        time.sleep(0.05)  # an event ends a moment after its work
    return [event.name for event in profile.events() if event.name.startswith("hier:")]


def check_the_profiler_names_every_collective() -> None:
    group = dist.new_group()
    x, whole = torch.ones(3), torch.empty(3 * WORLD_SIZE)
    parts = list(whole.chunk(WORLD_SIZE))
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(x, group=group),
        "broadcast": lambda: dist.broadcast(x, 0, group=group),
        "reduce": lambda: dist.reduce(x, 0, group=group),
        "all_gather": lambda: dist.all_gather(parts, x, group=group),
        "_all_gather_base": lambda: dist.all_gather_into_tensor(whole, x, group=group),
        "gather": lambda: dist.gather(x, parts if RANK == 0 else None, group=group),
        "reduce_scatter": lambda: dist.reduce_scatter(x, parts, group=group),
        "_reduce_scatter_base": lambda: dist.reduce_scatter_tensor(x, whole, group=group),
        "barrier": lambda: dist.barrier(group=group),
    }
    for name, call in calls.items():
        found = events(call)
        assert f"hier:{name}" in found, (name, found)


# The rest needs scatter, all_to_all and point to point.


def check_the_profiler_names_the_others_too() -> None:
    group = dist.new_group()
    x, whole = torch.ones(3), torch.ones(3 * WORLD_SIZE)
    parts, others = list(whole.chunk(WORLD_SIZE)), list(torch.empty(WORLD_SIZE, 3))
    peer = (RANK + 1) % WORLD_SIZE

    def pass_on() -> None:
        work = dist.isend(x, peer, group=group)
        dist.recv(others[0], (RANK - 1) % WORLD_SIZE, group=group)
        work.wait()

    calls: dict[tuple[str, ...], Callable[[], object]] = {
        ("scatter",): lambda: dist.scatter(x, parts if RANK == 0 else None, group=group),
        ("all_to_all",): lambda: dist.all_to_all(others, parts, group=group),
        ("send", "recv"): pass_on,
    }
    for names, call in calls.items():
        found = events(call)
        assert {f"hier:{name}" for name in names} <= set(found), (names, found)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    main(dict(globals()))

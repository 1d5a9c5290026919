"""Object collectives and torch.distributed.checkpoint."""

import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from harness import FOLDER, RANK, WORLD_SIZE, main
from models import network, step
from replicas import Plain, sgd
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

# Objects of unlike sizes; what they hold is our own.
THINGS = [{"rank": rank, "text": "x" * 1000 * rank, "none": None} for rank in range(WORLD_SIZE)]
LAST = WORLD_SIZE - 1


def check_objects_of_all_ranks() -> None:
    collect = dist.all_gather_object
    found: list[Any] = [None] * WORLD_SIZE
    collect(found, THINGS[RANK])
    assert found == THINGS


def check_objects_of_a_subgroup() -> None:
    members = [0, LAST]
    group = dist.new_group(members)
    collect = dist.all_gather_object
    if RANK in members:
        found: list[Any] = [None] * 2
        collect(found, THINGS[RANK], group=group)
        assert found == [THINGS[0], THINGS[LAST]]


def check_objects_from_one_rank() -> None:
    tell = dist.broadcast_object_list
    for root in (0, LAST):
        told: list[Any] = [THINGS[RANK], RANK] if root == RANK else [None, None]
        tell(told, src=root)
        assert told == [THINGS[root], root]


def check_objects_at_one_rank() -> None:
    collect = dist.gather_object
    for root in (0, LAST):
        found: list[Any] | None = [None] * WORLD_SIZE if root == RANK else None
        collect(THINGS[RANK], found, dst=root)
        assert found == (THINGS if root == RANK else None)


# The rest needs scatter.


def check_objects_dealt_out_by_one_rank() -> None:
    deal = dist.scatter_object_list
    for root in (0, LAST):
        mine: list[Any] = [None]
        deal(mine, THINGS if root == RANK else None, src=root)
        assert mine == [THINGS[RANK]]


def sharded_state(value: float) -> dict[str, Any]:
    """A tensor in shards along two dimensions of a mesh, one that all ranks have, a number."""
    mesh = init_device_mesh("cpu", (2, WORLD_SIZE // 2))
    rows = torch.full((3, 8), value + RANK)
    return {
        "shards": DTensor.from_local(rows, mesh, [Shard(0), Shard(0)]),
        "whole": DTensor.from_local(
            torch.full((5,), value), mesh, [Replicate(), Replicate()], run_check=False
        ),
        "plain": torch.full((2, 2), value),
        "number": value,
    }


def assert_saved(state: dict[str, Any], value: float) -> None:
    assert torch.equal(state["shards"].to_local(), torch.full((3, 8), value + RANK))
    assert torch.equal(state["whole"].to_local(), torch.full((5,), value))
    assert torch.equal(state["plain"], torch.full((2, 2), value))
    assert state["number"] == value


def check_a_checkpoint_comes_back() -> None:
    checkpoint.save(sharded_state(1.0), checkpoint_id=FOLDER / "saved")
    state = sharded_state(-5.0)
    checkpoint.load(state, checkpoint_id=FOLDER / "saved")
    assert_saved(state, 1.0)


def check_a_checkpoint_in_the_background_comes_back() -> None:
    state = sharded_state(2.0)
    group = dist.new_group()  # of its own, since the order of a group's calls must be one
    place = FOLDER / "background"
    saving = checkpoint.async_save(state, checkpoint_id=place, process_group=group)
    state["plain"].fill_(-1)  # what is saved was copied
    x = torch.ones(1000)
    for _ in range(20):  # the training goes on
        dist.all_reduce(x)
        x /= WORLD_SIZE
    saving.result(timeout=30)
    assert torch.equal(x, torch.ones(1000))
    state = sharded_state(-5.0)
    checkpoint.load(state, checkpoint_id=place)
    assert_saved(state, 2.0)


def trainee(shape: tuple[int, ...]) -> tuple[nn.Module, torch.optim.Optimizer]:
    names = ("replicate", "shard")[-len(shape) :]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model = fully_shard(network(Plain), mesh=mesh)
    return model, sgd(model.parameters())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        step(model, seed)
        optimizer.step()
        optimizer.zero_grad()


def check_sharded_training_resumes_on_another_mesh() -> None:
    place = FOLDER / "training"
    model, optimizer = trainee((WORLD_SIZE,))
    train(model, optimizer, range(2))
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.save(state, checkpoint_id=place)
    resumed, its_optimizer = trainee((2, WORLD_SIZE // 2))
    train(resumed, its_optimizer, range(7, 8))  # anything else
    state = dict(zip(("model", "optimizer"), get_state_dict(resumed, its_optimizer), strict=True))
    checkpoint.load(state, checkpoint_id=place)
    set_state_dict(
        resumed,
        its_optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    for each in ((model, optimizer), (resumed, its_optimizer)):
        train(*each, range(2, 4))
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(p.full_tensor(), q.full_tensor(), atol=1e-6)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    main(dict(globals()))

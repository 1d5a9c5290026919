"""DeviceMesh, DTensor and tensor parallelism on 1-D and 2-D meshes; groups across nodes."""

import itertools
import warnings

import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import allreduce

COLUMNS = WORLD_SIZE // 2
WHOLE = torch.arange(7 * 6.0).reshape(7, 6)  # 7 rows divide unevenly


def square() -> DeviceMesh:
    return init_device_mesh("cpu", (2, COLUMNS), mesh_dim_names=("rows", "columns"))


def line() -> DeviceMesh:
    return init_device_mesh("cpu", (WORLD_SIZE,))


def placed(mesh: DeviceMesh, placements: list[Placement]) -> DTensor:
    """WHOLE with these placements; the local parts are made without communication."""
    parts = WHOLE
    for dim, placement in enumerate(placements):
        size, mine = mesh.size(dim), mesh.get_local_rank(dim)
        if isinstance(placement, Shard):
            chunks = parts.tensor_split(
                [-(-parts.shape[placement.dim] // size) * i for i in range(1, size)], placement.dim
            )
            parts = chunks[mine]
        elif isinstance(placement, Partial):
            parts = parts * (mine + 1) / (size * (size + 1) / 2)
    return DTensor.from_local(
        parts.clone(), mesh, placements, run_check=False, shape=WHOLE.shape, stride=WHOLE.stride()
    )


def check_the_groups_of_a_mesh() -> None:
    mesh = square()
    row, column = divmod(RANK, COLUMNS)
    for name, members in {
        "rows": [column + COLUMNS * i for i in range(2)],
        "columns": [row * COLUMNS + i for i in range(COLUMNS)],
    }.items():
        x = torch.full((3,), 10.0**RANK)
        dist.all_reduce(x, group=mesh.get_group(name))
        assert x.tolist() == [sum(10.0**rank for rank in members)] * 3, name
        assert mesh[name].size() == len(members)
        assert dist.get_process_group_ranks(mesh.get_group(name)) == members
    flat = mesh._flatten("all")
    x = torch.ones(1)
    dist.all_reduce(x, group=flat.get_group())
    assert x.item() == WORLD_SIZE


def check_groups_across_nodes() -> None:
    node_of = allreduce.torch.communicator().node_of_rank
    for members in itertools.combinations(range(WORLD_SIZE), 2):
        group = dist.new_group(list(members))
        if RANK in members:
            x = torch.full((1000,), RANK + 1.0)
            dist.all_reduce(x, group=group)
            assert x.tolist() == [sum(members) + 2.0] * 1000, members
            comm = allreduce.torch.communicator(group)
            assert comm.num_nodes == len({node_of[rank] for rank in members})
    reverse = dist.new_group([WORLD_SIZE - 1, 0])  # torch sorts the ranks
    if RANK in (0, WORLD_SIZE - 1):
        x = torch.tensor([RANK])
        dist.broadcast(x, src=WORLD_SIZE - 1, group=reverse)
        assert x.item() == WORLD_SIZE - 1


def check_local_synchronization_needs_the_members_only() -> None:
    # A group for all ranks: torch 2.14 counts such groups in the names of later ones. For the outer
    # and the inner ranks: torch 2.13 counts a rank's groups in this group's name.
    outer = [0, WORLD_SIZE - 1]
    members = outer if RANK in outer else list(range(1, WORLD_SIZE - 1))
    group = dist.new_group(members, use_local_synchronization=True)
    x = torch.ones(1)
    dist.all_reduce(x, group=group)
    assert x.item() == len(members)


def check_torch_keeps_split_group_for_accelerators() -> None:
    if not torch.accelerator.is_available():
        message = raises(RuntimeError, lambda: dist.split_group(split_ranks=[[0, 1]]))
        assert "No device associated" in message


def check_redistribution_in_one_dimension() -> None:
    mesh = line()
    ways = [(Shard(0), Replicate()), (Shard(1), Replicate()), (Partial(), Replicate())]
    ways += [(Partial(), Shard(0)), (Partial(), Shard(1)), (Replicate(), Shard(1))]
    for old, new in ways:
        moved = placed(mesh, [old]).redistribute(mesh, [new])
        assert torch.allclose(moved.to_local(), placed(mesh, [new]).to_local()), (old, new)


def check_redistribution_in_two_dimensions() -> None:
    mesh = square()
    kinds = (Shard(0), Shard(1), Replicate(), Partial())
    for old in itertools.product(kinds, repeat=2):
        tensor = placed(mesh, list(old))
        assert torch.allclose(tensor.full_tensor(), WHOLE), old
        for new in ((Replicate(), Replicate()), (Replicate(), Shard(1))):
            if isinstance(old[1], Shard) and isinstance(new[1], Shard) and old[1] != new[1]:
                continue  # shards change their dimension: below
            moved = tensor.redistribute(mesh, new)
            assert torch.allclose(moved.to_local(), placed(mesh, list(new)).to_local()), (old, new)


def check_reductions_other_than_sum() -> None:
    mesh = line()
    local = torch.tensor([RANK + 1.0, -RANK])
    for kind, expected in {
        "avg": [(WORLD_SIZE + 1) / 2, -(WORLD_SIZE - 1) / 2],
        "max": [WORLD_SIZE, 0.0],
        "min": [1.0, 1.0 - WORLD_SIZE],
    }.items():
        tensor = DTensor.from_local(local, mesh, [Partial(kind)])
        assert tensor.full_tensor().tolist() == expected, kind


def check_arithmetic_on_sharded_tensors() -> None:
    mesh = square()
    a = placed(mesh, [Shard(0), Shard(1)])
    b = DTensor.from_local(WHOLE.clone(), mesh, [Replicate(), Replicate()], run_check=False)
    assert torch.allclose((a @ b.t()).full_tensor(), WHOLE @ WHOLE.t())
    assert torch.allclose(a.sum().full_tensor(), WHOLE.sum())
    assert torch.allclose(a.mean(0).full_tensor(), WHOLE.mean(0))
    assert torch.allclose(a.softmax(1).full_tensor(), WHOLE.softmax(1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.norm(x))))


def block() -> Block:
    torch.manual_seed(3)
    return Block()


def check_tensor_parallel_gradients() -> None:
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(4))
    alone = block()
    expected = alone(x)
    expected.square().sum().backward()
    mesh = square()["columns"]
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    model = parallelize_module(block(), mesh, plan, src_data_rank=None)
    output = model(x)
    output.square().sum().backward()
    assert torch.allclose(output, expected, atol=1e-6)
    for name, p in model.named_parameters():
        grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        assert torch.allclose(grad, alone.get_parameter(name).grad, atol=1e-4), name


def check_shards_change_their_dimension() -> None:
    mesh = line()
    for old, new in ((0, 1), (1, 0)):
        moved = placed(mesh, [Shard(old)]).redistribute(mesh, [Shard(new)])
        assert torch.equal(moved.to_local(), placed(mesh, [Shard(new)]).to_local()), old
    mesh = square()
    ways = itertools.product((Shard(0), Shard(1), Partial(), Replicate()), repeat=2)
    for old, new in itertools.product(list(ways), repeat=2):
        if Partial() in new:
            continue
        moved = placed(mesh, list(old)).redistribute(mesh, new)
        assert torch.allclose(moved.full_tensor(), WHOLE), (old, new)


# The rest needs scatter and split.


def check_sequence_parallel_gradients() -> None:
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(4))
    alone = block()
    expected = alone(x)
    expected.square().sum().backward()
    mesh = square()["columns"]
    plan = {
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
    }
    model = parallelize_module(block(), mesh, plan)
    output = model(x.chunk(COLUMNS, 1)[mesh.get_local_rank()]).full_tensor()
    output.square().sum().backward()
    assert torch.allclose(output, expected, atol=1e-6)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad.full_tensor(), alone.get_parameter(name).grad, atol=1e-4), name


def check_a_tensor_is_dealt_out_by_rank_0() -> None:
    mesh = square()
    mine = WHOLE if RANK == 0 else torch.full_like(WHOLE, -1)
    for placements in ([Shard(0), Shard(1)], [Shard(0), Shard(0)], [Replicate(), Shard(1)]):
        tensor = distribute_tensor(mine, mesh, placements)
        assert torch.equal(tensor.full_tensor(), WHOLE), placements


def check_a_group_can_be_split_below_torchs_gates() -> None:
    world = dist.group.WORLD
    assert world._get_backend(torch.device("cpu")).supports_splitting
    last = WORLD_SIZE - 1
    for parts in ([[0, last], list(range(1, last))], [list(range(WORLD_SIZE))]):
        members = next(part for part in parts if RANK in part)
        part = world.split_group(members, group_name=f"split {members}")
        assert (part.rank(), part.size()) == (members.index(RANK), len(members))
        x = torch.full((100,), RANK + 1.0)
        part.allreduce([x]).wait()
        assert x.tolist() == [sum(members) + len(members)] * 100


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    main(dict(globals()))

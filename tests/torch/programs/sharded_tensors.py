"""ShardedTensor, FSDP1 with sharded state dicts, and checkpoints of both, on CPUs."""

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from harness import FOLDER, RANK, WORLD_SIZE, main
from models import network
from torch import Tensor, nn
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

ROWS = 4 * WORLD_SIZE


def placed(dim: int) -> ChunkShardingSpec:
    return ChunkShardingSpec(dim, [f"rank:{rank}/cpu" for rank in range(WORLD_SIZE)])


def sharded(dim: int, values: Tensor) -> sharded_tensor.ShardedTensor:
    """`values` along a dimension, a chunk on each rank."""
    tensor = sharded_tensor.empty(placed(dim), *values.shape)
    for shard in tensor.local_shards():
        begin, sizes = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        part = values
        for d, (first, size) in enumerate(zip(begin, sizes, strict=True)):
            part = part.narrow(d, first, size)
        shard.tensor.copy_(part)
    return tensor


def gathered(tensor: sharded_tensor.ShardedTensor) -> Tensor:
    """The whole on every rank."""
    whole = torch.full(tuple(tensor.size()), float("nan"))
    tensor.gather(0, out=whole if RANK == 0 else None)
    dist.broadcast(whole, 0)
    return whole


def check_what_cannot_be_used_is_not_registered() -> None:
    devices = dist.BackendConfig(dist.Backend("hier")).get_device_backend_map()
    assert ("cuda" in devices) == torch.backends.cuda.is_built(), devices
    assert not torch.cuda.is_initialized()


def check_a_sharded_tensor_is_gathered() -> None:
    values = torch.arange(ROWS * 6.0).view(ROWS, 6)
    assert torch.equal(gathered(sharded(0, values)), values)


def check_a_sharded_tensor_is_loaded_in_another_sharding() -> None:
    values = torch.arange(float(ROWS * ROWS)).view(ROWS, ROWS)
    folder = FOLDER / "rows"
    checkpoint.save({"x": sharded(0, values)}, checkpoint_id=folder)
    found = {"x": sharded(1, torch.zeros(ROWS, ROWS))}
    checkpoint.load(found, checkpoint_id=folder)
    assert torch.equal(gathered(found["x"]), values)
    plain = {"x": torch.zeros(ROWS, ROWS)}
    checkpoint.load(plain, checkpoint_id=folder)
    assert torch.equal(plain["x"], values)


def wrapped() -> FullyShardedDataParallel:
    model = FullyShardedDataParallel(network(Layers), device_id=torch.device("cpu"))
    FullyShardedDataParallel.set_state_dict_type(model, StateDictType.SHARDED_STATE_DICT)
    return model


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # torch asks for CUDA where a rank has no row of a tensor, on every backend.
        self.first, self.second = nn.Linear(7, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def check_a_sharded_state_dict_of_fsdp() -> None:
    model, alone = wrapped(), network(Layers)
    x = torch.ones(2, 7)
    assert torch.allclose(model(x), alone(x))
    state = model.state_dict()
    for name, value in alone.state_dict().items():
        shards = state[name]
        assert isinstance(shards, sharded_tensor.ShardedTensor), type(shards)
        assert torch.equal(gathered(shards), value), name
    folder = FOLDER / "fsdp"
    checkpoint.save({"model": state}, checkpoint_id=folder)
    other = wrapped()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    found = {"model": other.state_dict()}
    checkpoint.load(found, checkpoint_id=folder)
    other.load_state_dict(found["model"])
    assert torch.allclose(other(x), alone(x))


if __name__ == "__main__":
    main(dict(globals()))

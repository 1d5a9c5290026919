"""Sharded training: FSDP2 on 1-D and 2-D meshes, ZeroRedundancyOptimizer: see replicas.py."""

import itertools
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import RANK, WORLD_SIZE, main
from models import alike, batches, near, network, step
from replicas import LEARNING_RATE, Replicas, sgd, weights
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

SEEDS = range(3)
SHAPES = {"line": (WORLD_SIZE,), "hybrid": (2, WORLD_SIZE // 2)}


class Deep(nn.Module):
    """Four layers for FSDP to gather one after another; 401 and 7 rows divide unevenly."""

    def __init__(self) -> None:
        super().__init__()
        widths = (192, 401, 60, 33, 7)
        pairs = itertools.pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def sharded(shape: str = "line", **options: Any) -> FSDPModule:
    names = ("replicate", "shard")[-len(SHAPES[shape]) :]
    mesh = init_device_mesh("cpu", SHAPES[shape], mesh_dim_names=names)
    model = network(Deep)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def train(model: nn.Module) -> list[Tensor]:
    optimizer = sgd(model.parameters())
    for seed in SEEDS:
        step(model, seed)
        optimizer.step()
        optimizer.zero_grad()
    return whole(model)


def whole(model: nn.Module) -> list[Tensor]:
    return [p.full_tensor().detach() for p in model.parameters()]


def whole_gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.full_tensor() for p in model.parameters()]


def check_fully_shard_trains_as_one_process_does() -> None:
    expected = weights(Replicas(Deep).train(SEEDS))
    for shape in SHAPES:
        assert near(train(sharded(shape)), expected, 1e-5), shape


def check_parameters_may_stay_gathered() -> None:
    expected = weights(Replicas(Deep).train(SEEDS))
    for keep in (False, 2):  # not at all; in groups of two ranks
        assert near(train(sharded(reshard_after_forward=keep)), expected, 1e-5), keep


def check_sums_that_torch_divides() -> None:
    expected = weights(Replicas(Deep).train(SEEDS))
    for shape in SHAPES:
        model = sharded(shape)
        model.set_force_sum_reduction_for_comms(True)
        assert near(train(model), expected, 1e-5), shape


def check_half_precision_gradients_are_summed() -> None:
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float16)  # SUM of what torch has divided
    expected = weights(Replicas(Deep).train(SEEDS))
    assert near(train(sharded(mp_policy=policy)), expected, 2e-3)


def check_mixed_precision() -> None:
    for reduce_dtype in (torch.float32, torch.bfloat16):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduce_dtype)
        model = sharded(mp_policy=policy)
        step(model)
        replicas = Replicas(Deep, dtype=torch.bfloat16)
        replicas.backward(0)
        for module in replicas.modules:
            module.float()
            for p in module.parameters():
                p.grad = p.grad.float()
        replicas.average_gradients()
        expected = [p.grad for p in replicas.modules[0].parameters()]
        tolerance = 1e-5 if reduce_dtype == torch.float32 else 1e-2
        assert near(whole_gradients(model), expected, tolerance), reduce_dtype
        assert all(p.dtype == torch.float32 for p in model.parameters())


def check_gradients_accumulate_without_communication() -> None:
    model, replicas = sharded(), Replicas(Deep)
    for seed in SEEDS:
        model.set_requires_gradient_sync(seed == SEEDS[-1])
        step(model, seed)
        replicas.backward(seed)
    replicas.average_gradients()
    expected = [p.grad for p in replicas.modules[0].parameters()]
    assert near(whole_gradients(model), expected)


def check_the_norm_of_sharded_gradients_can_be_clipped() -> None:
    model, replicas = sharded("hybrid"), Replicas(Deep)
    step(model)
    replicas.backward(0)
    replicas.average_gradients()
    alone = replicas.modules[0]
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    expected = nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
    assert torch.allclose(norm.full_tensor(), expected)
    assert near(whole_gradients(model), [p.grad for p in alone.parameters()])


def check_zero_redundancy_optimizer() -> None:
    expected = weights(Replicas(Deep, torch.optim.Adam).train(SEEDS))
    for view in (False, True):
        model = DistributedDataParallel(network(Deep))
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), torch.optim.Adam, parameters_as_bucket_view=view
        )
        for seed in SEEDS:
            step(model, seed)
            optimizer.step()
            optimizer.zero_grad()
        assert near(weights(model), expected, 1e-4), view
        assert all(alike(p) for p in model.parameters())


def check_zero_redundancy_state_comes_together() -> None:
    model, alone = network(Deep), network(Deep)
    sharded_sgd = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    whole_sgd = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    for module, optimizer in ((model, sharded_sgd), (alone, whole_sgd)):
        x, target = batches(0)[0]  # the same on all ranks
        F.cross_entropy(module(x), target).backward()
        optimizer.step()
    sharded_sgd.consolidate_state_dict(to=WORLD_SIZE - 1)
    if RANK == WORLD_SIZE - 1:
        mine, expected = (each.state_dict()["state"] for each in (sharded_sgd, whole_sgd))
        assert mine.keys() == expected.keys()
        for key, state in expected.items():
            assert torch.equal(mine[key]["momentum_buffer"], state["momentum_buffer"]), key


def check_sharded_optimizers_join_ranks_that_have_run_out_as_on_gloo() -> None:
    trained = []
    for group in (dist.group.WORLD, dist.new_group(backend="gloo")):
        model = DistributedDataParallel(
            network(Deep), process_group=group, gradient_as_bucket_view=True
        )
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), torch.optim.SGD, process_group=group, lr=LEARNING_RATE
        )
        with Join([model, optimizer]):
            for seed in range(RANK + 1):
                optimizer.zero_grad()
                step(model, seed)
                optimizer.step()
        trained.append(weights(model))
        assert all(alike(p) for p in model.parameters())
    assert near(*trained, 1e-5)


# The rest needs PREMUL_SUM and allocateTensor.


def check_gradients_divided_by_a_number_of_choice() -> None:
    for shape in SHAPES:
        model = sharded(shape)
        for layer in model.layers:
            layer.set_gradient_divide_factor(3.0)  # makes torch use PREMUL_SUM
        step(model)
        replicas = Replicas(Deep)
        replicas.backward(0)
        replicas.average_gradients()
        expected = [p.grad * (WORLD_SIZE / 3.0) for p in replicas.modules[0].parameters()]
        assert near(whole_gradients(model), expected), shape


def check_buffers_from_the_process_group() -> None:
    expected = weights(Replicas(Deep).train(SEEDS))
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    assert backend.supports_tensor_alloc(torch.device("cpu"))
    for shape in SHAPES:
        model = sharded(shape)
        for layer in model.layers:
            layer.set_allocate_memory_from_process_group_for_comm(True)
        assert near(train(model), expected, 1e-5), shape


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    main(dict(globals()))

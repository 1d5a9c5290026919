"""Modules that change after they were wrapped, second wrappers around or inside, and copies."""

import copy
import gc
import io
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises
from models import alike
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as StockDDP
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import allreduce
from allreduce.torch import DistributedDataParallel as OurDDP
from allreduce.torch import ShardedSGD


def layers() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(100 * seed + RANK))


def is_reduced(model: nn.Module, module: nn.Module, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a pass of the wrapper gives the mean of the ranks' gradients, to each parameter."""
    model.zero_grad()
    model(inputs().to(dtype)).square().sum().backward()
    found = [p.grad.clone() for p in module.parameters()]
    alone = copy.deepcopy(module)
    alone(inputs().to(dtype)).square().sum().backward()
    for p, mine in zip(alone.parameters(), found, strict=True):
        dist.all_reduce(p.grad)
        if not torch.allclose(mine, p.grad / WORLD_SIZE, atol=1e-6):
            return False
    return True


def check_parameters_that_a_state_dict_replaces_are_reduced() -> None:
    model = OurDDP(layers())
    assert is_reduced(model, model.module)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert is_reduced(model, model.module)
    assert torch.equal(model.module[0].weight, state["module.0.weight"])


def check_rank_0_decides_what_is_new() -> None:
    model = OurDDP(layers())
    torch.manual_seed(RANK)
    model.module[2] = nn.Linear(5, 6)
    assert is_reduced(model, model.module)
    assert all(alike(p) for p in model.parameters())


def check_layers_that_are_unfrozen_are_reduced() -> None:
    module = layers()
    module[0].requires_grad_(False)
    model = OurDDP(module)
    model(inputs()).sum().backward()
    assert module[0].weight.grad is None
    module[0].requires_grad_(True)
    assert is_reduced(model, module)


def check_layers_that_are_frozen_later_need_no_gradient() -> None:
    model = OurDDP(layers())
    for frozen in (True, False, True):
        model.zero_grad()
        model.module[0].requires_grad_(not frozen)
        model(inputs()).sum().backward()
        assert (model.module[0].weight.grad is None) == frozen
        assert alike(model.module[2].weight.grad)


def check_another_dtype_after_wrapping() -> None:
    model = OurDDP(layers())
    assert is_reduced(model, model.module)
    model.double()
    assert is_reduced(model, model.module, torch.float64)
    model.to(torch.bfloat16)
    model.zero_grad()
    model(inputs().bfloat16()).sum().backward()
    assert model.module[0].weight.grad.dtype == torch.bfloat16
    assert all(alike(p.grad) for p in model.parameters())


def check_storage_that_is_swapped() -> None:
    model = OurDDP(layers())
    for p in model.parameters():
        p.data = p.data.clone()
    assert is_reduced(model, model.module)
    vector_to_parameters(parameters_to_vector(model.parameters()), model.parameters())
    assert is_reduced(model, model.module)


def check_another_memory_format_while_there_are_gradients() -> None:
    torch.manual_seed(1)
    for op in ("mean", "sum"):
        model = OurDDP(nn.Conv2d(3, 4, 3), op=op)
        x = torch.randn(2, 3, 5, 5) + RANK
        for _ in range(2):  # the second pass adds to what .to() has moved
            model(x).square().sum().backward()
            model.to(memory_format=torch.channels_last)
        twice = 2 * torch.autograd.grad(model(x).square().sum(), model.module.weight)[0]
        dist.all_reduce(twice)
        expected = twice / (WORLD_SIZE if op == "mean" else 1)
        assert torch.allclose(model.module.weight.grad, expected, rtol=1e-5), (
            op,
            (model.module.weight.grad / expected).flatten()[:6].tolist(),
        )


def check_sums_that_stay_in_grad_survive_a_change() -> None:
    model = OurDDP(layers(), op="sum")
    model(inputs()).sum().backward()
    before = model.module[2].weight.grad.clone()
    model.module[0] = nn.Linear(4, 5)
    model(inputs()).sum().backward()
    alone = copy.deepcopy(model.module)
    alone(inputs()).sum().backward()
    dist.all_reduce(alone[2].weight.grad)
    assert torch.allclose(model.module[2].weight.grad, before + alone[2].weight.grad, atol=1e-5)


def check_functional_call_is_no_change() -> None:
    model = OurDDP(layers())
    values = {name: p.detach() * 2 for name, p in model.named_parameters()}
    torch.func.functional_call(model, values, (inputs(),)).sum()
    passes = model.statistics()["passes"]
    assert is_reduced(model, model.module)
    assert model.statistics()["passes"] == passes + 1


def check_a_change_on_one_rank_is_an_error_on_all() -> None:
    group = dist.new_group()
    model = OurDDP(layers(), process_group=group)
    if RANK == 1:
        model.module[0] = nn.Linear(4, 5)
    raises(allreduce.Error, lambda: model(inputs()).sum().backward())


def refuses(words: str, call: Callable[..., object], *arguments: object) -> None:
    """Whether a call is refused by a message with these words; it keeps none of the arguments."""
    try:
        call(*arguments)
    except allreduce.UsageError as error:
        message = str(error)
    else:
        raise AssertionError(f"no UsageError with {words!r}")
    assert words in message, message


def after(module: nn.Module) -> nn.Module:
    return nn.Sequential(module, nn.Linear(3, 3))


def check_two_wrappers_of_ours() -> None:
    module = layers()
    first = OurDDP(module)
    for inside in (first, module, module[0], after(module), after(first)):
        refuses("already", OurDDP, inside)
    assert is_reduced(first, module)
    del first, inside
    gc.collect()
    assert is_reduced(OurDDP(module), module)


def check_ours_around_and_beside_torchs() -> None:
    module = layers()
    stock = StockDDP(module)
    for inside in (stock, module, after(stock)):
        refuses("reduced by torch's DistributedDataParallel", OurDDP, inside)
    del stock, inside
    gc.collect()
    assert is_reduced(OurDDP(module), module)


def check_torchs_around_ours() -> None:
    module = layers()
    model = OurDDP(module)
    refuses("bare module", StockDDP, model)
    around = StockDDP(after(model))
    refuses("torch's DistributedDataParallel", around, inputs())
    del around
    beside = StockDDP(module)  # without a forward pass of ours
    refuses("torch's DistributedDataParallel", beside(inputs()).sum().backward)
    del beside
    gc.collect()
    assert is_reduced(model, module)


def check_torchs_around_another_part_is_no_second_reducer() -> None:
    model, stock = OurDDP(layers()), StockDDP(nn.Linear(3, 3))
    stock(model(inputs())).sum().backward()
    assert all(alike(p.grad) for p in [*model.parameters(), *stock.parameters()])


def check_sharded_sgd_and_a_wrapper() -> None:
    module = layers()
    model = OurDDP(module)
    refuses("DistributedDataParallel", ShardedSGD, module.parameters(), 1.0)
    del model
    optimizer = ShardedSGD(module.parameters(), lr=1.0)
    refuses("ShardedSGD", OurDDP, module)
    del optimizer
    assert is_reduced(OurDDP(module), module)


def check_accelerate_takes_the_bare_module() -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": str(RANK)}
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == WORLD_SIZE
    model = OurDDP(layers())
    refuses("bare module", accelerator.prepare, model)
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    model(inputs()).sum().backward()
    optimizer.step()
    assert all(alike(p) for p in model.parameters())


def check_fabric_takes_the_bare_module() -> None:
    from lightning_fabric.strategies import DDPStrategy

    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")], process_group_backend="hier")
    refuses("bare module", strategy.setup_module, OurDDP(layers()))


def check_copies_share_the_group() -> None:
    model = OurDDP(layers(), find_unused_parameters=True)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    twin = copy.deepcopy(model)
    assert is_reduced(model, model.module)
    assert is_reduced(twin, twin.module)
    assert twin._options == model._options
    if RANK == 0:  # no other rank is needed
        copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        assert file.tell() > 0


def check_a_copy_of_another_group_is_refused() -> None:
    model = OurDDP(layers(), process_group=dist.new_group())
    message = raises(allreduce.UsageError, lambda: copy.deepcopy(model))
    assert ".module" in message
    copy.deepcopy(model.module)


def check_create_graph_is_refused() -> None:
    model = OurDDP(layers())
    loss = model(inputs()).square().sum()
    message = raises(allreduce.UsageError, lambda: loss.backward(create_graph=True))
    assert "torch.autograd.grad" in message
    for p in model.parameters():
        p.grad = None
    loss = model(inputs()).square().sum()
    parts = torch.autograd.grad(loss, [*model.parameters()], create_graph=True)
    sum(part.square().sum() for part in parts).backward()
    assert all(alike(p.grad) for p in model.parameters())


def check_an_error_of_one_rank_reaches_all() -> None:
    group = dist.new_group()
    model = OurDDP(layers(), process_group=group, bucket_bytes=0)
    loss = model(inputs()).square().sum()
    if RANK == 1:
        raises(allreduce.UsageError, lambda: loss.backward(create_graph=True))
        return
    raises(allreduce.Error, loss.backward)


if __name__ == "__main__":
    main(dict(globals()))

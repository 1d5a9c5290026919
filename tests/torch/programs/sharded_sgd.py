"""ShardedSGD: against DistributedDataParallel with SGD, and one process."""

import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises
from models import alike, near, network, step
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.lr_scheduler import StepLR

import allreduce
from allreduce.optim import SGD, split_weight_decay
from allreduce.torch import DistributedDataParallel, ShardedSGD, communicator

STEPS = 5
OPTIONS = {"lr": 0.1, "momentum": 0.9, "nesterov": True}


def groups(module: nn.Module) -> list[dict]:
    """With and without weight decay, and one of a single odd parameter with all else."""
    first, second = split_weight_decay(module, 0.01)
    scale = {"params": [module.scale], "lr": 0.03, "momentum": 0.5, "nesterov": False}
    first["params"] = [p for p in first["params"] if p is not module.scale]
    return [first, second, scale]


def reference(kind: torch.dtype, passes: int = STEPS, op: str = "mean") -> list[Tensor]:
    module = network().to(kind)
    model = DistributedDataParallel(module, op=op) if WORLD_SIZE > 1 else module
    optimizer = SGD(groups(module), **OPTIONS)
    schedule = StepLR(optimizer, 2, 0.5)
    for seed in range(passes):
        optimizer.zero_grad()
        backward(model, seed, kind)
        optimizer.step()
        schedule.step()
    return [p.detach() for p in module.parameters()]


def backward(model: nn.Module, seed: int, kind: torch.dtype) -> None:
    if kind == torch.float32:
        step(model, seed)
        return
    before, model.forward = model.forward, lambda x: before(x.to(kind))
    step(model, seed)
    model.forward = before


def sharded(kind: torch.dtype, **more: object) -> tuple[nn.Module, ShardedSGD]:
    module = network().to(kind)
    return module, ShardedSGD(groups(module), **OPTIONS, **more)


def trained(kind: torch.dtype, passes: int = STEPS, **more: object) -> list[Tensor]:
    module, optimizer = sharded(kind, **more)
    schedule = StepLR(optimizer, 2, 0.5)
    for seed in range(passes):
        optimizer.zero_grad()
        backward(module, seed, kind)
        optimizer.step()
        schedule.step()
    return [p.detach() for p in module.parameters()]


def same_bits(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def check_the_same_bits_as_ddp_and_sgd() -> None:
    """Where both add along one tree, with sizes that leave torch's kernel no rest."""
    found = []
    for shards in (True, False):
        torch.manual_seed(2)
        module = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48))
        model = DistributedDataParallel(module) if not shards and WORLD_SIZE > 1 else module
        optimizer = SGD(module.parameters(), **OPTIONS)
        if shards:
            optimizer = ShardedSGD(module.parameters(), **OPTIONS, algo="halving_doubling")
        generator = torch.Generator().manual_seed(RANK)
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.randn(9, 32, generator=generator)).square().mean().backward()
            optimizer.step()
        found.append(list(module.parameters()))
    assert near(*found, 1e-6)
    uneven = WORLD_SIZE == 3 and communicator().num_nodes > 1
    assert same_bits(*found) or uneven


def check_it_is_ddp_and_sgd() -> None:
    """Sums of several ranks are steps as many times as long, which carry errors further."""
    for kind, relative in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        for op in ("mean", "sum"):
            found, expected = trained(kind, op=op), reference(kind, op=op)
            assert near(found, expected, relative), (kind, op)
            assert all(alike(p) for p in found)
            assert not near(found, list(network().parameters()), 1e-3)


def check_algorithms_between_nodes() -> None:
    for algo in ("ring", "halving_doubling"):
        assert near(trained(torch.float32, algo=algo), reference(torch.float32), 1e-6)


def check_rank_0_s_parameters_win_and_values_are_kept() -> None:
    torch.manual_seed(RANK)
    module = nn.Linear(3, 5)
    expected = [p.detach().clone() for p in module.parameters()]
    ShardedSGD(module.parameters(), lr=1.0)
    assert all(alike(p) for p in module.parameters())
    assert RANK != 0 or same_bits(list(module.parameters()), expected)


def check_parameters_and_gradients_lie_in_flat_memory_as_they_did() -> None:
    module, optimizer = sharded(torch.float32)
    strides = [p.stride() for p in network().parameters()]
    optimizer.zero_grad()
    step(module)
    for tensors in (list(module.parameters()), [p.grad for p in module.parameters()]):
        assert len({t.untyped_storage().data_ptr() for t in tensors}) == 1
        assert [t.stride() for t in tensors] == strides


def check_momentum_is_divided() -> None:
    module, optimizer = sharded(torch.float32)
    step(module)
    optimizer.step()
    assert not optimizer.state
    own = sum(momentum.numel() for _, momentum in optimizer._steps.momenta())
    values = sum(p.numel() for p in module.parameters())
    assert own <= values / WORLD_SIZE + 16 * (len(list(module.parameters())) + 2), own


def check_gradients_add_up_until_the_step() -> None:
    module, optimizer = sharded(torch.float32)
    twin = network()
    model = DistributedDataParallel(twin)
    other = SGD(groups(twin), **OPTIONS)
    for turn in range(3):
        for each, its in ((module, optimizer), (model, other)):
            if turn:
                (each if turn == 1 else its).zero_grad()  # the module's takes .grad away
            with model.no_sync():
                step(each, 2 * turn)
            step(each, 2 * turn + 1)
            its.step()
        assert near(list(module.parameters()), list(twin.parameters()), 1e-6), turn


def check_a_parameter_without_a_gradient_counts_as_zero() -> None:
    for users in ([0], [WORLD_SIZE - 1], []):
        torch.manual_seed(0)
        module, twin = (nn.ParameterList([torch.randn(7), torch.randn(5)]) for _ in range(2))
        optimizer = ShardedSGD(module, **OPTIONS, weight_decay=0.1)
        other = SGD(twin, **OPTIONS, weight_decay=0.1)
        for p, q in zip(module, twin, strict=True):
            q.data.copy_(p)
        for _ in range(3):
            module.zero_grad()  # flat memory still has what the last step left there
            loss = module[0].sum() + (module[1].sum() * 2 if RANK in users else 0.0)
            loss.backward()
            twin[0].grad = torch.ones(7)
            twin[1].grad = torch.full((5,), 2.0 * len(set(users)) / WORLD_SIZE)
            optimizer.step()
            other.step()
        assert near([*module], [*twin], 1e-6), users


def check_state_goes_to_sgd_and_back() -> None:
    module, optimizer = sharded(torch.float32)
    twin = network()
    other = SGD(groups(twin), **OPTIONS)
    for seed in range(2):
        optimizer.zero_grad()
        step(module, seed)
        optimizer.step()
    state = optimizer.state_dict()
    assert all(alike(s["momentum"]) for s in state["state"].values())
    assert [s["momentum"].shape for s in state["state"].values()] == [
        p.shape for group in optimizer.param_groups for p in group["params"]
    ]
    twin.load_state_dict(module.state_dict())
    other.load_state_dict(state)
    model = DistributedDataParallel(twin) if WORLD_SIZE > 1 else twin
    third = network()
    third.load_state_dict(module.state_dict())
    resumed = ShardedSGD(groups(third), **{**OPTIONS, "lr": 9.0})
    resumed.load_state_dict(other.state_dict())
    for seed in range(2, 4):
        for each, its in ((module, optimizer), (model, other), (third, resumed)):
            its.zero_grad()
            step(each, seed)
            its.step()
    assert near(list(module.parameters()), list(twin.parameters()), 1e-6)
    assert same_bits(list(module.parameters()), list(third.parameters()))


def check_a_closure_is_called() -> None:
    module, optimizer = sharded(torch.float32)

    def closure() -> float:
        optimizer.zero_grad()
        step(module)
        return 2.5

    assert optimizer.step(closure) == 2.5
    assert near(list(module.parameters()), reference(torch.float32, 1), 1e-6)


def check_few_values_for_many_ranks() -> None:
    module = nn.ParameterList([torch.zeros(()), torch.zeros(0), torch.zeros(1)])
    optimizer = ShardedSGD(module, lr=1.0, momentum=0.0, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        (module[0] * (RANK + 1) + module[2].sum()).backward()
        optimizer.step()
    expected = -2 * (WORLD_SIZE + 1) / 2
    assert abs(module[0].item() - expected) < 1e-5
    assert module[2].item() == -2


def check_nothing_decays_unasked() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = ShardedSGD([w], lr=1.0)
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(w, torch.ones(3))


def check_arguments_that_cannot_work() -> None:
    p = nn.Parameter(torch.zeros(3))
    half = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    meta = nn.Parameter(torch.zeros(3, device="meta"))
    for params, more, words in (
        ([p], {"op": "max"}, "op='max'"),
        ([half], {}, "dtype torch.bfloat16"),
        ([p, nn.Parameter(p.double())], {}, "number 1 has dtype torch.float64"),
        ([meta], {}, "are on meta"),
        ([p, meta], {}, "number 1 is on meta"),
    ):
        found = raises(allreduce.UsageError, lambda a=params, m=more: ShardedSGD(a, lr=1.0, **m))
        assert words in found, found
    raises(ValueError, lambda: ShardedSGD([p], lr=-1.0))
    optimizer = ShardedSGD([p], lr=1.0)
    raises(allreduce.UsageError, lambda: optimizer.add_param_group({"params": [half]}))
    state = SGD([p], lr=1.0, form="absorbed").state_dict()
    assert "form" in raises(allreduce.UsageError, lambda: optimizer.load_state_dict(state))
    table = nn.Embedding(4, 3, sparse=True)
    optimizer = ShardedSGD(table.parameters(), lr=1.0)
    table.zero_grad()
    table(torch.tensor([1])).sum().backward()
    assert "sparse" in raises(allreduce.UsageError, optimizer.step)


def check_storage_that_is_replaced_is_trained_on() -> None:
    def identity(module: nn.Module) -> None:
        module.conv.to(memory_format=torch.contiguous_format)
        vector_to_parameters(parameters_to_vector(module.parameters()), module.parameters())

    def swap(module: nn.Module) -> None:
        for p in module.parameters():
            p.data = p.data.clone()

    for replace in (identity, swap):
        module, optimizer = sharded(torch.float32)
        for seed in range(STEPS):
            if seed in (0, 2):
                replace(module)
            for group in optimizer.param_groups:
                group["lr"] *= 0.5 if seed in (2, 4) else 1.0  # as the reference's schedule
            optimizer.zero_grad()
            step(module, seed)
            optimizer.step()
        assert near(list(module.parameters()), reference(torch.float32), 1e-5)
        assert len({p.untyped_storage().data_ptr() for p in module.parameters()}) == 1


def check_parameters_that_are_no_longer_the_module_s() -> None:
    def assign(module: nn.Module) -> None:
        state = {name: p.detach().clone() for name, p in module.state_dict().items()}
        module.load_state_dict(state, assign=True)

    for change, words in (
        (assign, "was replaced in its module, as 'weight'"),
        (lambda module: module.double(), "is float64[2, 3] on cpu now"),
        (lambda module: ShardedSGD(module.parameters(), 1.0), "another optimizer's"),
    ):
        module = nn.Linear(3, 2)
        optimizer = ShardedSGD(module.parameters(), lr=1.0)
        changed = change(module)
        found = raises(allreduce.UsageError, optimizer.step)
        assert words in found, found
        assert "make a new ShardedSGD" in found
        del changed
    module, before = nn.Linear(3, 2), None
    optimizer = ShardedSGD(module.parameters(), lr=1.0)
    del module.bias  # what is gone is no mistake
    before = module.weight.detach().clone()
    module.weight.grad = torch.ones(2, 3)
    optimizer.step()
    assert not torch.equal(module.weight, before)


def check_a_parameter_replaced_on_one_rank_is_an_error_on_all() -> None:
    if WORLD_SIZE == 1:
        return
    module = nn.Linear(3, 2)
    optimizer = ShardedSGD(module.parameters(), lr=1.0, process_group=dist.new_group())
    if RANK == 1:
        module.double()
        raises(allreduce.UsageError, optimizer.step)
    else:
        raises(allreduce.Error, optimizer.step)


def check_ranks_that_differ_are_told() -> None:
    if WORLD_SIZE == 1:
        return
    for mine in (nn.Linear(3 + (RANK == 1), 2), nn.Linear(3, 2)):
        lr = 1.0 + (RANK == 1)
        words = raises(allreduce.MismatchError, lambda m=mine, r=lr: ShardedSGD(m.parameters(), r))
        assert "ShardedSGD" in words, words


def check_rates_that_differ_are_told_at_the_step() -> None:
    """The last check: the group is of no use afterwards."""
    if WORLD_SIZE == 1:
        return
    comm = communicator().split(0)
    module, optimizer = sharded(torch.float32)
    optimizer._comm = optimizer._steps._comm = comm  # the process group goes on
    optimizer.param_groups[0]["lr"] = 1.0 + RANK
    optimizer.zero_grad()
    step(module)
    raises(allreduce.MismatchError, optimizer.step)


if __name__ == "__main__":
    main(dict(globals()))

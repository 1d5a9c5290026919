"""torch's own DistributedDataParallel with its options, hooks and averagers: see replicas.py."""

import warnings
from collections import OrderedDict
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import RANK, WORLD_SIZE, main, raises
from models import alike, batches, grads, near, network, step
from replicas import EVERYONE, LEARNING_RATE, Plain, Replicas, sgd, weights
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.hierarchical_model_averager import (
    HierarchicalModelAverager,
)
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

SEEDS = range(4)
PAIRS = [(rank, rank + 1) for rank in range(0, WORLD_SIZE, 2)]


def train(model: nn.Module, seeds: range = SEEDS) -> nn.Module:
    optimizer = sgd(model.parameters())
    for seed in seeds:
        step(model, seed)
        optimizer.step()
        optimizer.zero_grad()
    return model


def check_every_option_trains_as_one_process_does() -> None:
    expected = weights(Replicas().train(SEEDS))
    options: list[dict[str, Any]] = [
        {},
        {"bucket_cap_mb": 0.1},
        {"gradient_as_bucket_view": True},
        {"static_graph": True, "bucket_cap_mb": 0.1},
        {"static_graph": True, "gradient_as_bucket_view": True},
        {"find_unused_parameters": True, "gradient_as_bucket_view": True},
        {"init_sync": False},
    ]
    for each in options:
        model = train(DistributedDataParallel(network(), **each))
        assert near(weights(model), expected, 1e-5), each
        assert all(alike(p) for p in model.parameters()), each


def check_the_same_weights_as_on_gloo_after_20_iterations() -> None:
    ours = train(DistributedDataParallel(network()), range(20))
    gloo = dist.new_group(backend="gloo")
    theirs = train(DistributedDataParallel(network(), process_group=gloo), range(20))
    assert near(weights(ours), weights(theirs), 1e-5)


def check_rank_0_decides_the_first_weights_and_buffers() -> None:
    torch.manual_seed(RANK)
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(RANK + 5.0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 3), norm))
    assert all(alike(p) for p in model.parameters())
    assert norm.running_mean.tolist() == [5.0] * 3
    norm.running_mean.fill_(RANK + 7.0)
    model.eval()
    model(torch.ones(2, 4)).sum().backward()  # buffers are synchronised before each pass
    assert norm.running_mean.tolist() == [7.0] * 3


def check_no_sync_accumulates() -> None:
    for view in (False, True):
        model = DistributedDataParallel(network(), gradient_as_bucket_view=view)
        replicas = Replicas()
        with model.no_sync():
            step(model, 1)
            step(model, 2)
        assert not alike(model.module.head.weight.grad)
        step(model, 3)
        for seed in (1, 2, 3):
            replicas.backward(seed)
        replicas.average_gradients()
        assert near(grads(model), grads(replicas.modules[0])), view


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes, self.never = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor, both: bool) -> Tensor:
        x = self.always(x)
        return self.sometimes(x) if both else x


def check_unused_parameters_count_as_zero() -> None:
    model = DistributedDataParallel(network(Branches), find_unused_parameters=True)
    for users in ([0], [WORLD_SIZE - 1], range(WORLD_SIZE), []):
        model.zero_grad()
        model(torch.full((2, 4), RANK + 1.0), RANK in users).sum().backward()
        alone = network(Branches)
        for rank in range(WORLD_SIZE):
            (alone(torch.full((2, 4), rank + 1.0), rank in users).sum() / WORLD_SIZE).backward()
        for mine, expected in zip(grads(model), grads(alone), strict=True):
            if expected is None:
                assert mine is None, users
            else:
                assert torch.allclose(mine, expected), users


def check_join_lets_ranks_have_unlike_numbers_of_minibatches() -> None:
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    with model.join():
        for seed in range(RANK + 1):
            optimizer.zero_grad()
            step(model, seed)
            optimizer.step()
    alone = network()
    optimizer = torch.optim.SGD(alone.parameters(), lr=LEARNING_RATE)
    for seed in range(WORLD_SIZE):
        optimizer.zero_grad()
        for x, target in batches(seed)[seed:]:  # ranks below `seed` have run out
            (F.cross_entropy(alone(x), target) / WORLD_SIZE).backward()
        optimizer.step()
    assert all(alike(p) for p in model.parameters())
    assert near(weights(model), weights(alone), 1e-5)


def check_join_can_stop_at_the_first_end_of_input() -> None:
    model = DistributedDataParallel(network())

    def epoch() -> None:
        with model.join(throw_on_early_termination=True):
            for seed in range(1 if RANK == 0 else 3):
                step(model, seed)

    raises(RuntimeError, epoch)


def check_compressing_hooks() -> None:
    expected = Replicas()
    expected.backward(0)
    expected.average_gradients()
    model = DistributedDataParallel(network())
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    built_in = DistributedDataParallel(network())
    built_in._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
    for each in (model, built_in):
        step(each)
        assert near(grads(each), grads(expected.modules[0]), 2e-3)
        assert not near(grads(each), grads(expected.modules[0]), 1e-7)  # it did compress
        assert all(alike(p.grad) for p in each.parameters())


def check_hooks_that_leave_the_gradient_whole() -> None:
    expected = Replicas()
    expected.backward(0)
    expected.average_gradients()
    model = DistributedDataParallel(network(), bucket_cap_mb=0.1)
    model.register_comm_hook(dist.group.WORLD, default_hooks.allreduce_hook)
    built_in = DistributedDataParallel(network(), bucket_cap_mb=0.1)
    built_in._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    for each in (model, built_in):
        step(each)
        assert near(grads(each), grads(expected.modules[0]))


def check_torch_keeps_its_bf16_hook_for_gpus() -> None:
    hook = default_hooks.bf16_compress_hook
    model = DistributedDataParallel(network())
    if torch.version.cuda is None:
        assert "BF16" in raises(TypeError, lambda: model.register_comm_hook(None, hook))


def check_power_sgd_as_on_gloo() -> None:
    gloo = dist.new_group(backend="gloo")
    for warm_start in (True, False):
        trained = []
        for group in (dist.group.WORLD, gloo):
            model = DistributedDataParallel(network(Plain), process_group=group)
            state = powerSGD_hook.PowerSGDState(
                process_group=group,
                matrix_approximation_rank=2,
                start_powerSGD_iter=2,
                warm_start=warm_start,
                use_error_feedback=warm_start,
            )
            model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
            trained.append(weights(train(model)))
        assert near(*trained, 1e-4), warm_start
        assert not near(trained[0], weights(Replicas(Plain).train(SEEDS)), 1e-4)  # it did compress


def check_post_local_sgd() -> None:
    groups = [dist.new_group(list(pair)) for pair in PAIRS]
    model = DistributedDataParallel(network(Plain))
    state = PostLocalSGDState(None, groups[RANK // 2], start_localSGD_iter=2)
    model.register_comm_hook(state, post_localSGD_hook)
    averager = PeriodicModelAverager(period=3, warmup_steps=2)
    optimizer = PostLocalSGDOptimizer(sgd(model.parameters()), averager)
    replicas = Replicas(Plain)
    for seed in range(7):
        step(model, seed)
        optimizer.step()
        optimizer.zero_grad()
        replicas.backward(seed)
        replicas.average_gradients(EVERYONE if seed < 2 else PAIRS)
        replicas.step()
        if seed >= 2 and (seed - 2) % 3 == 0:
            replicas.average_parameters()
        assert near(weights(model), weights(replicas.modules[RANK]), 1e-5), seed


def check_hierarchical_model_averaging() -> None:
    averager = HierarchicalModelAverager(OrderedDict([(1, 2), (3, WORLD_SIZE)]))
    module, replicas = network(), Replicas()
    for seed in range(4):
        for rank, each in enumerate(replicas.modules):  # as if each rank had trained by itself
            for p in each.parameters():
                p.grad = torch.full_like(p, rank + seed + 1.0)
        for p in module.parameters():
            p.data += RANK + seed + 1.0
            p.grad = torch.zeros_like(p)
        averager.average_parameters(module.parameters())
        for each in replicas.modules:
            for p in each.parameters():
                p.data += p.grad
        replicas.average_parameters(PAIRS if seed % 3 else EVERYONE)
        assert near(weights(module), weights(replicas.modules[RANK]), 1e-5), seed


def check_a_data_loader_may_fork_workers() -> None:
    rows = TensorDataset(torch.arange(16.0 * WORLD_SIZE).reshape(-1, 1))
    model = DistributedDataParallel(nn.Linear(1, 1))
    for _ in range(2):
        sampler = DistributedSampler(rows, shuffle=False)
        for (x,) in DataLoader(rows, 4, sampler=sampler, num_workers=2):
            model(x).sum().backward()
    mine = sum(range(16 * WORLD_SIZE)) / WORLD_SIZE  # a rank's mean
    assert model.module.weight.grad.item() == 2 * mine


def check_torch_keeps_sync_batch_norm_for_gpus() -> None:
    module = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3)))
    message = raises(ValueError, lambda: module(torch.ones(2, 3)))
    assert "SyncBatchNorm expected input tensor to be on" in message


# The rest needs sparse allreduce.


class Words(nn.Module):
    """Two tables with sparse gradients and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(50, 6, sparse=True, mode="sum")
        self.places = nn.Embedding(20, 6, sparse=True)
        self.head = nn.Linear(6, 3)

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.words(index) + self.places(index % 20).sum(1))


def check_sparse_gradients_of_embeddings() -> None:
    generator = torch.Generator().manual_seed(5)
    index = torch.randint(50, (WORLD_SIZE, 4, 3), generator=generator)
    index[0, 0] = 7  # the same row three times
    for options in ({}, {"gradient_as_bucket_view": True}):
        model, alone = DistributedDataParallel(network(Words), **options), network(Words)
        for _ in range(3):
            model.zero_grad()
            alone.zero_grad()
            model(index[RANK]).square().mean().backward()
            for each in index:
                (alone(each).square().mean() / WORLD_SIZE).backward()
            assert model.module.words.weight.grad.is_sparse
            for p, q in zip(model.parameters(), alone.parameters(), strict=True):
                assert torch.allclose(p.grad.to_dense(), q.grad.to_dense(), atol=1e-7)
            index = index.roll(1)


def check_sparse_gradients_may_have_no_rows_on_some_ranks() -> None:
    model = DistributedDataParallel(network(Words), find_unused_parameters=True)
    index = torch.arange(RANK * 3).reshape(RANK, 3) % 50  # rank 0 has an empty minibatch
    model(index).sum().backward()
    alone = network(Words)
    for rank in range(WORLD_SIZE):
        (alone(torch.arange(rank * 3).reshape(rank, 3) % 50).sum() / WORLD_SIZE).backward()
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(p.grad.to_dense(), q.grad.to_dense(), atol=1e-7)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="You passed find_unused_parameters=true")
    main(dict(globals()))

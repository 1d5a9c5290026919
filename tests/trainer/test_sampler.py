"""Remark 4: one permutation per epoch, cut among the workers."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.sampler import EpochSampler, evaluation_batches


def workers(size: int, batch: int, world_size: int, seed: int = 0) -> list[EpochSampler]:
    return [
        EpochSampler(size=size, batch=batch, rank=rank, world_size=world_size, seed=seed)
        for rank in range(world_size)
    ]


SIZES = [(1536, 32, 4), (100, 8, 3), (64, 64, 1), (50, 7, 7), (13, 2, 6)]


@pytest.mark.parametrize(("size", "batch", "world_size"), SIZES)
def test_workers_together_see_the_permutation_without_its_tail(size, batch, world_size) -> None:
    group = workers(size, batch, world_size)
    per_worker = [list(worker.epoch(3)) for worker in group]
    iterations = size // (batch * world_size)
    assert [len(batches) for batches in per_worker] == [iterations] * world_size
    assert {worker.iterations for worker in group} == {iterations}
    seen = np.concatenate([np.concatenate(parts) for parts in zip(*per_worker, strict=True)])
    expected = group[0].permutation(3)[: iterations * batch * world_size]
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(("size", "batch", "world_size"), SIZES)
def test_each_batch_has_n_images_and_none_comes_twice(size, batch, world_size) -> None:
    batches = [b for worker in workers(size, batch, world_size) for b in worker.epoch(0)]
    assert {len(b) for b in batches} == {batch}
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(range(size))


def test_a_minibatch_does_not_depend_on_how_many_workers_share_it() -> None:
    def minibatches(batch: int, world_size: int) -> list[list[int]]:
        each = [worker.epoch(1) for worker in workers(512, batch, world_size)]
        return [np.concatenate(parts).tolist() for parts in zip(*each, strict=True)]

    assert minibatches(32, 4) == minibatches(64, 2) == minibatches(128, 1)


def test_epochs_and_seeds_shuffle_differently_but_repeatably() -> None:
    sampler, other = workers(1000, 10, 1, seed=1)[0], workers(1000, 10, 1, seed=2)[0]
    np.testing.assert_array_equal(sampler.permutation(4), sampler.permutation(4))
    orders = [sampler.permutation(4), sampler.permutation(5), other.permutation(4)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(1000))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (orders[i] == orders[j]).sum() < 20


def test_every_image_gets_its_turn_although_tails_are_dropped() -> None:
    sampler = workers(100, 30, 1)[0]
    seen = {int(i) for epoch in range(20) for batch in sampler.epoch(epoch) for i in batch}
    assert seen == set(range(100))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_the_rest_of_an_epoch_is_dealt_to_other_workers_without_repeats(world_size: int) -> None:
    before = [list(worker.epoch(2))[:3] for worker in workers(500, 16, 4)]
    after = [list(worker.epoch(2, offset=3 * 64)) for worker in workers(500, 16, world_size)]
    used = np.concatenate([b for each in (*before, *after) for b in each])
    rest = (500 - 3 * 64) // (16 * world_size) * 16 * world_size
    assert len(used) == 3 * 64 + rest
    order = workers(500, 16, 1)[0].permutation(2)
    assert sorted(used.tolist()) == sorted(order[: len(used)].tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 300])
@pytest.mark.parametrize(("size", "batch"), [(261, 32), (1, 8), (256, 64), (0, 4)])
def test_evaluation_counts_each_image_once(size: int, batch: int, world_size: int) -> None:
    shares = [list(evaluation_batches(size, batch, r, world_size)) for r in range(world_size)]
    seen = [int(i) for share in shares for indices in share for i in indices]
    assert sorted(seen) == list(range(size))
    counts = [sum(map(len, share)) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert all(0 < len(indices) <= batch for share in shares for indices in share)

"""The buckets of stock DDP, as the prediction of a training step has them."""

import pytest
import torch
import torch.distributed as dist

from benchmarks.networks.prediction import _backward, _stock_buckets
from benchmarks.networks.training import STOCK_BUCKET
from trainer.dry_run.duration import BACKWARD


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize("first", [1 << 20, STOCK_BUCKET])
def test_they_are_those_of_torch(scale: int, first: int) -> None:
    limits = [first // scale, STOCK_BUCKET // scale]
    tensors = [torch.empty(p.numel()) for p in _backward(scale)[1]]
    buckets, _ = dist._compute_bucket_assignment_by_size(tensors, limits, [False] * len(tensors))
    expected = [sum(tensors[i].nbytes for i in bucket) for bucket in buckets]
    found = list(_stock_buckets(limits[1], limits[0], scale))
    assert [nbytes for _, nbytes in found] == expected
    ready = [when for when, _ in found]
    assert ready == sorted(ready)
    assert ready[-1] == pytest.approx(BACKWARD)

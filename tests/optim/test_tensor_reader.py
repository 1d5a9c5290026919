"""The core's look at an optimizer's tensors: what it takes, and what it leaves to torch."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor, nn

from allreduce import _C
from allreduce.errors import UsageError
from allreduce.optim import _kernels


class Other(Tensor):
    """Whose address may say nothing."""


class Row(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("parameters", "momenta", "gradients", "count")),
        *((name, ctypes.c_double) for name in ("weight_decay", "last")),
    )


@pytest.fixture
def reader() -> _C.TensorReader:
    found = _kernels._reader()
    if found is None:
        pytest.skip("this torch has no exchange API of DLPack")
    return found


def rows_of(tensors: _C.OptimizerTensors) -> list[tuple[float, ...]]:
    array = (Row * len(tensors)).from_address(tensors.address)
    return [tuple(getattr(row, name) for name, _ in Row._fields_) for row in array]


def test_rows_have_addresses_counts_and_the_numbers_of_a_step(reader: _C.TensorReader) -> None:
    params = [nn.Parameter(torch.ones(12)[2:]), nn.Parameter(torch.ones(3, 4))]
    gradients, momenta = ([torch.ones_like(p).bfloat16() for p in params] for _ in range(2))
    momenta = [m.float() for m in momenta]
    tensors = reader.read(params, gradients, momenta)
    assert tensors is not None
    assert tensors.dtype == "bfloat16"
    assert tensors.counts == [10, 12]
    tensors.set_numbers(0.5, [1.0, 2.0])
    assert rows_of(tensors) == [
        (p.data_ptr(), m.data_ptr(), g.data_ptr(), p.numel(), 0.5, last)
        for p, m, g, last in zip(params, momenta, gradients, (1.0, 2.0), strict=True)
    ]
    plain = reader.read(params, gradients, [])
    assert plain is not None
    assert [row[1] for row in rows_of(plain)] == [0, 0]


def square(**options: object) -> Tensor:
    return torch.ones(4, 4, **options)


@pytest.mark.parametrize(
    ("param", "gradient"),
    [
        (torch.ones(2, 3, 4, 5).permute(0, 2, 3, 1), torch.ones(2, 3, 4, 5).permute(0, 2, 3, 1)),
        (torch.ones(8, 1), torch.ones(1, 8).t()),
        (torch.ones(()), torch.ones(())),
        (torch.ones(0, 3, 0), torch.ones(0, 3, 0)),
        (torch.ones(5)[:1], torch.ones(9)[::9]),
    ],
)
def test_dense_tensors_of_one_order_are_taken(
    reader: _C.TensorReader, param: Tensor, gradient: Tensor
) -> None:
    assert reader.read([param], [gradient], [param.clone()]) is not None
    assert _kernels.in_one_order([param, gradient])


@pytest.mark.parametrize(
    ("param", "gradient", "momentum"),
    [
        (square().double(), square(), square()),
        (square(), square().double(), square()),
        (square(), square(), square().half()),
        (square(), square().t(), square()),
        (square(), square(), square().t()),
        (torch.ones(8, 8)[:, ::2], torch.ones(8, 8)[:, ::2], torch.ones(8, 8)[:, ::2]),
        (torch.ones(1).expand(4), torch.ones(1).expand(4), torch.ones(1).expand(4)),
        (square(), torch.ones(16), square()),
        (square(), torch.ones(4, 5), square()),
        (square(), square(), torch.ones(2)),
        (square(), square().to_sparse(), square()),
        (square(), square().as_subclass(Other), square()),
        (square().as_subclass(Other), square(), square()),
        (square(), square(), square(device="meta")),
    ],
)
def test_what_does_not_fit_is_left(
    reader: _C.TensorReader, param: Tensor, gradient: Tensor, momentum: Tensor
) -> None:
    fits = square()
    assert reader.read([fits, param], [fits, gradient], [fits, momentum]) is None
    assert reader.read([param, fits], [gradient, fits], [momentum, fits]) is None
    assert reader.read([fits], [fits], [fits]) is not None


def test_gradients_of_two_dtypes_are_no_single_call(reader: _C.TensorReader) -> None:
    assert reader.read([square()] * 2, [square(), square().half()], []) is None


def test_numbers_of_another_count_are_refused(reader: _C.TensorReader) -> None:
    with pytest.raises(UsageError, match="gradient for each parameter"):
        reader.read([square()], [], [])
    with pytest.raises(UsageError, match="a momentum for each or none"):
        reader.read([square()] * 2, [square()] * 2, [square()])
    tensors = reader.read([square()], [square()], [])
    assert tensors is not None
    with pytest.raises(UsageError, match="each of 1 tensors, not 2"):
        tensors.set_numbers(0.0, [1.0, 1.0])

"""torch tensors of every kind, call by call: worked on where they lie, or refused in words."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_calls import IN_PLACE, READS, refuses
from worlds import run_threads

from allreduce.errors import UsageError

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch calls half of these experimental

ALL = {**READS, **IN_PLACE}


class Subclass(torch.Tensor):
    pass


def fake() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(torch.ones(2))


def of_two() -> Any:
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(torch.ones(2), torch.ones(2))


def functional() -> Any:
    from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

    with FunctionalTensorMode():
        return FunctionalTensor.to_functional(torch.ones(2))


def freed() -> Any:
    x = torch.ones(2)
    x.untyped_storage().resize_(0)
    return x


def wrapped(transform: Callable[..., Any]) -> Any:
    """What a function sees under a transformation of torch.func."""
    seen = []

    def look(x: Any) -> Any:
        seen.append(x)
        return x.sum()

    transform(look)(torch.ones(2, 2))
    return seen[0]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "meta": (lambda: torch.ones(2, device="meta"), "meta"),
    "negative view": (lambda: torch._neg_view(torch.ones(2)), r"negative view.*resolve_neg\(\)"),
    "imaginary part": (
        lambda: torch.ones(2, dtype=torch.complex64).conj().imag,
        r"negative view.*resolve_neg\(\)",
    ),
    "conjugate": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "complex64"),
    "COO": (lambda: torch.eye(2).to_sparse(), r"sparse_coo.*to_dense\(\)"),
    "CSR": (lambda: torch.eye(2).to_sparse_csr(), r"sparse_csr.*to_dense\(\)"),
    "MKL-DNN": (lambda: torch.eye(2).to_mkldnn(), r"_mkldnn.*to_dense\(\)"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
        "nested",
    ),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "qint8"),
    "strides": (lambda: torch.ones(2, 4)[:, ::2], r"not contiguous; pass x\.contiguous\(\)"),
    "expanded": (lambda: torch.ones(1).expand(2), r"not contiguous; pass x\.contiguous\(\)"),
    "lazy parameter": (torch.nn.parameter.UninitializedParameter, "no memory of its own"),
    "under vmap": (lambda: wrapped(torch.func.vmap), "no memory of its own"),
    "under grad": (lambda: wrapped(torch.func.grad), "no memory of its own"),
    "functional": (functional, "no memory of its own"),
    "storage": (lambda: torch.ones(2).untyped_storage(), "UntypedStorage is no array"),
}
# Their address is 0: the core refuses them, whatever they come as.
WITHOUT_MEMORY: dict[str, Callable[[], Any]] = {
    "fake": fake,
    "of zeros": lambda: torch._efficientzerotensor(2),
    "freed": freed,
    "of two tensors": of_two,
    "under functionalize": lambda: wrapped(torch.func.functionalize),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("name", ALL)
def test_a_tensor_whose_memory_is_something_else_is_refused(name: str, what: str) -> None:
    make, words = REFUSED[what]
    refuses(ALL[name], make, words)


@pytest.mark.parametrize("what", WITHOUT_MEMORY)
@pytest.mark.parametrize("name", IN_PLACE)
def test_a_tensor_without_memory_is_refused(name: str, what: str) -> None:
    def body(comm: Any) -> float:
        with pytest.raises(UsageError, match=f"on rank {comm.rank}: .*no memory"):
            IN_PLACE[name](comm, WITHOUT_MEMORY[what]())
        return float(comm.allreduce(np.ones(1))[0])

    assert run_threads(2, body) == [2.0] * 2


GOOD: dict[str, Callable[[], Any]] = {
    "plain": lambda: torch.ones(2),
    "subclass": lambda: torch.ones(2).as_subclass(Subclass),
    "parameter": lambda: torch.nn.Parameter(torch.ones(2)),
    "wants gradients": lambda: torch.ones(2, requires_grad=True),
    "result of a graph": lambda: torch.ones(2, requires_grad=True) * 1,
    "inference": lambda: torch.inference_mode()(torch.ones)(2),
    "of no dimensions": lambda: torch.tensor(1.0),
    "of NumPy": lambda: torch.from_numpy(np.ones(2, np.float32)),
    "in shared memory": lambda: torch.ones(2).share_memory_(),
    "resolved": lambda: torch._neg_view(-torch.ones(2)).resolve_neg(),
}


@pytest.mark.parametrize("what", GOOD)
def test_a_tensor_that_has_memory_changes_in_place(what: str) -> None:
    def body(comm: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            x = GOOD[what]()
            address = x.data_ptr()
            assert comm.allreduce(x) is x
            assert comm.broadcast(x, root=1) is x
            comm.reduce(x)
        assert x.data_ptr() == address
        assert x.detach().flatten().tolist() == [4.0 if comm.rank == 0 else 2.0] * x.numel()

    run_threads(2, body)

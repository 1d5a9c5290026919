"""Several tensors on each rank, through a backend's own methods: as ProcessGroupGloo has them."""

import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from allreduce.errors import UsageError

P = WORLD_SIZE
CPU = DEVICE = torch.device("cpu")
if "ALLREDUCE_DEVICE_RUNTIME" in os.environ:
    import cpu_device

    cpu_device.load()
    DEVICE = torch.device("privateuseone", 0)
OPS = dist.ReduceOp
REDUCTIONS = (OPS.SUM, OPS.PRODUCT, OPS.MIN, OPS.MAX, OPS.BAND, OPS.BOR, OPS.BXOR)
GLOO: list[dist.ProcessGroup] = []


def gloo() -> dist.Backend:
    if not GLOO:
        GLOO.append(dist.new_group(backend="gloo"))
    return GLOO[0]._get_backend(CPU)


def hier() -> dist.Backend:
    return dist.group.WORLD._get_backend(DEVICE)


def draw(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * seed + RANK)
    return torch.randint(1, 5, (count,), generator=generator).to(dtype)


def assert_as_gloo(call: Callable[[dist.Backend, torch.device], list[Tensor]]) -> None:
    want, found = call(gloo(), CPU), call(hier(), DEVICE)
    for x, y in zip(found, want, strict=True):
        assert torch.equal(x.cpu(), y), (x.cpu(), y)


def options(kind: type, **values: object) -> object:
    made = kind()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def check_all_reduce_is_over_all_tensors_of_all_ranks() -> None:
    for op in REDUCTIONS:
        bits = op in (OPS.BAND, OPS.BOR, OPS.BXOR)
        for dtype in (torch.int64, torch.int8) if bits else (torch.float32, torch.int32):
            for tensors in (2, 3):

                def call(backend, device, op=op, dtype=dtype, tensors=tensors) -> list[Tensor]:
                    xs = [draw(1001, dtype, i).to(device) for i in range(tensors)]
                    backend.allreduce(xs, options(c10d.AllreduceOptions, reduceOp=op)).wait()
                    return xs

                assert_as_gloo(call)


def check_a_mean_is_divided_by_the_ranks() -> None:
    xs = [torch.full((5,), float(RANK + 1 + i)).to(DEVICE) for i in range(2)]
    hier().allreduce(xs, options(c10d.AllreduceOptions, reduceOp=OPS.AVG)).wait()
    mean = sum(2 * (r + 1) + 1 for r in range(P)) / P
    assert all((x.cpu() == mean).all() for x in xs), xs


def check_all_reduce_of_tensors_that_share_memory() -> None:
    def call(backend, device) -> list[Tensor]:
        x = draw(600, torch.float32, 1).to(device)
        for xs in ([x, x], [x[:300], x[300:]]):
            backend.allreduce(xs, c10d.AllreduceOptions()).wait()
        return [x]

    assert_as_gloo(call)


def check_tensors_that_are_not_contiguous() -> None:
    wide = torch.full((5, 2), float(RANK)).to(DEVICE)
    hier().allreduce([wide[:, 0], wide[:, 1]], c10d.AllreduceOptions()).wait()
    assert (wide.cpu() == P * (P - 1)).all()


def check_broadcast_is_of_the_root_tensor_to_all() -> None:
    for root in range(P):
        for tensor in range(3):

            def call(backend, device, root=root, tensor=tensor) -> list[Tensor]:
                xs = [draw(501, torch.float64, i).to(device) for i in range(3)]
                how = options(c10d.BroadcastOptions, rootRank=root, rootTensor=tensor)
                backend.broadcast(xs, how).wait()
                return xs

            assert_as_gloo(call)


def check_all_gather_of_several_inputs() -> None:
    for inputs in (1, 2, 3):

        def call(backend, device, inputs=inputs) -> list[Tensor]:
            xs = [draw(77, torch.float32, i).to(device) for i in range(inputs)]
            outs = [[torch.zeros(77).to(device) for _ in range(inputs * P)] for _ in range(inputs)]
            backend.allgather(outs, xs, c10d.AllgatherOptions()).wait()
            return [x for out in outs for x in out]

        assert_as_gloo(call)


def check_coalesced_tensors_may_share_memory() -> None:
    shapes = {
        "one twice": lambda x: [x, x],
        "one thrice, and another": lambda x: [x[:10], x[500:], x[:10], x[:10]],
        "parts": lambda x: [x[:400], x[300:]],
        "a part and all": lambda x: [x, x[100:200]],
        "apart": lambda x: [x[:500], x[500:]],
    }
    for name, pick in shapes.items():
        for i in range(40):

            def call(backend, device, pick=pick, i=i) -> list[Tensor]:
                x = draw(1000, torch.int64, i).to(device)
                backend.allreduce_coalesced(pick(x), c10d.AllreduceCoalescedOptions()).wait()
                return [x]

            try:
                assert_as_gloo(call)
            except AssertionError as error:
                raise AssertionError(f"{name}, try {i}: {error}") from error


def check_sparse_lists() -> None:
    if DEVICE != CPU:
        return

    def call(backend, device) -> list[Tensor]:
        xs = []
        for i in range(3):
            at = (draw(4, torch.int64, i) * 3 + i) % 20
            xs.append(torch.sparse_coo_tensor(at[None], draw(4, torch.float32, i + 9), (20,)))
        backend.allreduce(xs, c10d.AllreduceOptions()).wait()
        return [x.to_dense() for x in xs]

    assert_as_gloo(call)


def check_wrong_lists_are_refused_as_by_gloo() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    sparse = torch.sparse_coo_tensor([[0]], [1.0], (1,))
    root = lambda kind, rank, tensor: options(kind, rootRank=rank, rootTensor=tensor)  # noqa: E731
    reduce, bcast = c10d.AllreduceOptions(), c10d.BroadcastOptions
    together = c10d.AllreduceCoalescedOptions()
    cases = [
        (lambda b: b.allreduce([], reduce), "requires non-empty tensor list"),
        (lambda b: b.allreduce([one, two], reduce), "invalid tensor size at index"),
        (lambda b: b.allreduce([one, one.double()], reduce), "invalid tensor type"),
        (lambda b: b.allreduce([one, sparse], reduce), "invalid tensor layout"),
        (lambda b: b.allreduce([sparse, one], reduce), "invalid tensor layout"),
        (lambda b: b.allreduce_coalesced([], together), "requires non-empty tensor list"),
        (
            lambda b: b.allreduce_coalesced([one, one.double()], together),
            "tensors must all have the same type",
        ),
        (lambda b: b.allreduce_coalesced([one, sparse], together), "invalid tensor layout at"),
        (lambda b: b.broadcast([one], root(bcast, -1, 0)), "invalid root rank"),
        (lambda b: b.broadcast([one], root(bcast, P, 0)), "invalid root rank"),
        (lambda b: b.broadcast([one], root(bcast, 0, -1)), "invalid root tensor"),
        (lambda b: b.broadcast([one], root(bcast, 0, 1)), "invalid root tensor"),
        (lambda b: b.broadcast([], root(bcast, 0, 0)), "invalid root tensor"),
        (lambda b: b.broadcast([one, two], root(bcast, 0, 0)), "invalid tensor size"),
        (lambda b: b.broadcast([one, one.double()], root(bcast, 0, 0)), "invalid tensor type"),
        (lambda b: b.allgather([], [], c10d.AllgatherOptions()), "requires non-empty input"),
        (
            lambda b: b.allgather([[one] * P], [one, one], c10d.AllgatherOptions()),
            "requires input/output tensor lists to have the same length",
        ),
        (
            lambda b: b.allgather([[one] * (P + 1)], [one], c10d.AllgatherOptions()),
            "invalid output tensor list",
        ),
        (
            lambda b: b.allgather([[one.double()] * P], [one], c10d.AllgatherOptions()),
            "invalid tensor type",
        ),
        (
            lambda b: b.allgather([[two] * P], [one], c10d.AllgatherOptions()),
            "invalid tensor size",
        ),
        (
            lambda b: b.gather([], [], c10d.GatherOptions()),
            "requires a single-element input tensor list",
        ),
        (
            lambda b: b.scatter([], [], c10d.ScatterOptions()),
            "requires a single-element output tensor list",
        ),
    ]
    for call, words in cases:
        for backend, kind in ((gloo(), Exception), (hier(), UsageError)):
            said = raises(kind, lambda call=call, backend=backend: call(backend))
            assert words in said, (backend, words, said)


if __name__ == "__main__":
    main(dict(globals()))

"""What goes beyond DDP's collectives: messages, scatter, all-to-all, sparse sums; and misuse."""

from datetime import timedelta

import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises

import allreduce.torch

OPS = dist.ReduceOp
NEXT, LAST = (RANK + 1) % WORLD_SIZE, (RANK - 1) % WORLD_SIZE
MOVED = (torch.float8_e4m3fn, torch.uint16, torch.complex64, torch.bool, torch.bfloat16)


def backend_of(group: dist.ProcessGroup | None = None) -> dist.distributed_c10d.Backend:
    return (group or dist.group.WORLD)._get_backend(torch.device("cpu"))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal bit for bit, of whatever dtype."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def check_messages_of_every_kind_of_dtype() -> None:
    for dtype in MOVED:
        x = torch.arange(100).remainder(7).add(RANK).to(dtype)
        got = torch.empty(100).to(dtype)
        work = dist.isend(x, NEXT, tag=3)
        dist.recv(got, LAST, tag=3)
        work.wait()
        assert same(got, torch.arange(100).remainder(7).add(LAST).to(dtype)), dtype


def check_a_message_into_strides() -> None:
    x = torch.arange(40_000.0).view(200, 200)
    got = torch.zeros(200, 400)
    ops = [dist.P2POp(dist.isend, x.t(), NEXT), dist.P2POp(dist.irecv, got[:, ::2], LAST)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    assert torch.equal(got[:, ::2], x.t())
    assert not got[:, 1::2].any()


def check_any_source_tells_who_sent() -> None:
    if RANK == 0:
        for _ in range(WORLD_SIZE - 1):
            got = torch.empty(10_000)
            source = dist.recv(got)
            assert (got == source).all()
    else:
        dist.send(torch.full((10_000,), float(RANK)), 0)


def check_messages_wait_for_no_collective() -> None:
    """Rank 0 sends only behind the collective, which the others have begun."""
    got = torch.empty(3)
    pending = dist.irecv(got, 0) if RANK else None
    x = torch.ones(1000)
    work = dist.all_reduce(x, async_op=True)
    if RANK == 0:
        work.wait()
        for rank in range(1, WORLD_SIZE):
            dist.send(torch.ones(3), rank)
    if pending:
        pending.wait()
        assert got.tolist() == [1.0] * 3
    work.wait()
    assert (x == WORLD_SIZE).all()


def check_scatter_from_each_root() -> None:
    for root in range(WORLD_SIZE):
        for dtype in MOVED:
            parts = [torch.full((3, 2), r + root).to(dtype) for r in range(WORLD_SIZE)]
            got = torch.empty(2, 3).to(dtype).t()
            dist.scatter(got, parts if root == RANK else None, src=root)
            assert same(got, parts[RANK]), (root, dtype)


def check_all_to_all_of_uneven_lists() -> None:
    for dtype in MOVED:
        sent = [
            torch.full((RANK + 1, rank + 2), RANK + rank).to(dtype) for rank in range(WORLD_SIZE)
        ]
        got = [torch.empty(rank + 1, RANK + 2).to(dtype) for rank in range(WORLD_SIZE)]
        dist.all_to_all(got, sent)
        for rank, part in enumerate(got):
            assert same(part, torch.full((rank + 1, RANK + 2), RANK + rank).to(dtype))


def check_all_to_all_single_with_splits() -> None:
    rows = [(RANK + rank) % 3 for rank in range(WORLD_SIZE)]
    sent = torch.cat([torch.full((n, 2), 10.0 * RANK + rank) for rank, n in enumerate(rows)])
    got = torch.empty(sum(rows), 2)  # the numbers are symmetric
    dist.all_to_all_single(got, sent, rows, rows)
    want = torch.cat([torch.full((n, 2), 10.0 * rank + RANK) for rank, n in enumerate(rows)])
    assert torch.equal(got, want)
    dist.all_to_all_single(got := torch.empty(WORLD_SIZE), torch.full((WORLD_SIZE,), float(RANK)))
    assert got.tolist() == list(range(WORLD_SIZE))


def check_sums_of_multiples() -> None:
    x = torch.full((5,), RANK + 1.0)
    dist.all_reduce(x, dist._make_nccl_premul_sum(0.5))
    total = WORLD_SIZE * (WORLD_SIZE + 1) / 2
    assert x.tolist() == [total / 2] * 5
    part = torch.empty(3)
    factor = torch.full((1,), 2.0)
    dist.reduce_scatter_tensor(part, torch.ones(3 * WORLD_SIZE), dist._make_nccl_premul_sum(factor))
    assert part.tolist() == [2.0 * WORLD_SIZE] * 3


def check_means_of_integers_truncate() -> None:
    for value, mean in (
        (7 if RANK == 0 else 0, 7 // WORLD_SIZE),
        (-7 * (RANK == 0), -(7 // WORLD_SIZE)),
    ):
        x = torch.full((4, 4), value)
        dist.all_reduce(x.t(), OPS.AVG)
        assert (x == mean).all(), x


def check_sparse_sums() -> None:
    for count in (RANK, 0, 3):  # uneven, none at all, even
        x = torch.zeros(10, 6)
        x[RANK : RANK + count] = RANK + 1.0
        summed, mean, whole = x.to_sparse(1), x.to_sparse(2), x.clone()
        dist.all_reduce(whole)
        dist.all_reduce(summed)
        dist.all_reduce(mean, OPS.AVG, async_op=True).wait()
        assert torch.equal(summed.to_dense(), whole)
        assert torch.equal(mean.to_dense(), whole / WORLD_SIZE)


def check_sparse_tensors_of_unlike_shapes_are_refused() -> None:
    group = dist.new_group()
    x = torch.ones(5 if RANK == 0 else 6).to_sparse()
    raises(allreduce.MismatchError, lambda: dist.all_reduce(x, group=group))


def check_all_gather_of_several_tensors() -> None:
    x = [torch.full((2, 3), float(RANK)), torch.full((5,), RANK + 0.5)]
    got = [[torch.empty_like(t) for t in x] for _ in range(WORLD_SIZE)]
    dist.all_gather_coalesced(got, x)
    for rank, (one, other) in enumerate(got):
        assert (one == rank).all()
        assert (other == rank + 0.5).all()


def check_a_monitored_barrier_names_who_is_missing() -> None:
    group = dist.group.WORLD
    group.monitored_barrier(timedelta(seconds=20))
    if RANK != 1:
        text = raises(RuntimeError, lambda: group.monitored_barrier(timedelta(seconds=1)))
        assert "Rank 1" in text, text
    x = torch.ones(1)
    dist.all_reduce(x)  # the group is as it was
    assert x.item() == WORLD_SIZE


def check_memory_of_the_group() -> None:
    backend = backend_of()
    assert backend.supports_tensor_alloc(torch.device("cpu"))
    x = backend.allocate_tensor(1000, dtype=torch.bfloat16, device=torch.device("cpu"))
    x.fill_(1)
    dist.all_reduce(x)
    assert x.dtype == torch.bfloat16
    assert (x == WORLD_SIZE).all()


def check_a_call_has_a_timeout_of_its_own() -> None:
    group = dist.new_group()
    if RANK == 0:
        options = dist.AllreduceOptions()
        options.timeout = timedelta(seconds=1)
        work = backend_of(group).allreduce([torch.ones(1)], options)
        assert "1.0 s" in raises(TimeoutError, work.wait)


def check_refused_arguments() -> None:
    backend = backend_of()
    n = WORLD_SIZE
    refused = [
        (lambda: backend.broadcast(torch.ones(3).to_sparse(), root=0), "sparse"),
        (lambda: dist.all_reduce(torch.ones(3).to_sparse(), OPS.MAX), "sparse"),
        (lambda: backend.allreduce([torch.ones(3, device="meta")]), "meta"),
        (lambda: dist.all_reduce(torch.ones(3, dtype=torch.bool), OPS.AVG), "avg"),
        (lambda: dist.all_reduce(torch.ones(3), OPS.BOR), "bor"),
        (lambda: backend.broadcast(torch.ones(1), root=n), "root"),
        (lambda: dist._all_gather_base(torch.ones(n), torch.ones(2)), "world_size"),
        (lambda: backend.allgather([[torch.ones(1)] * (n + 1)], [torch.ones(1)]), "length"),
        (lambda: backend.allreduce([]), "non-empty"),
        (lambda: backend.send([torch.ones(1)], RANK, 0), "itself"),
        (lambda: backend.send([torch.ones(1)], n, 0), "outside"),
        (lambda: backend.recv([torch.ones(1)], -2, 0), "outside"),
        (lambda: backend.send([torch.ones(1)], (RANK + 1) % n, -7), "negative"),
        (lambda: backend.send([torch.ones(1)] * 2, (RANK + 1) % n, 0), "one tensor"),
        (lambda: backend.scatter(torch.ones(1), [], root=RANK), "single-element"),
        (lambda: backend.scatter(torch.ones(1), [torch.ones(2)] * n, root=RANK), "size"),
        (lambda: backend.alltoall([torch.ones(1)] * n, [torch.ones(1)]), "per rank"),
        (lambda: backend.alltoall([torch.ones(1)] * n, [torch.ones(1).double()] * n), "type"),
        (lambda: dist.all_to_all_single(torch.ones(n), torch.ones(n), [1] * n, [0] * n), "dim 0"),
        (lambda: dist.all_to_all_single(torch.ones(n + 1), torch.ones(n)), "dim 0"),
    ]
    # RuntimeErrors as of torch's own backends; most are ValueErrors too.
    said = [(word, raises(RuntimeError, call)) for call, word in refused]
    wrong = [pair for pair in said if pair[0] not in pair[1]]
    assert not wrong, wrong


if __name__ == "__main__":
    main(dict(globals()))

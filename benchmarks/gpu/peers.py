"""Section: collectives of virtual ranks whose kernels wait for each other, beside f64."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from benchmarks.gpu.kernels import Guarded
from benchmarks.gpu.rows import Impossible, Rows
from benchmarks.gpu.stand_ins import kernels_here, name_of, sgd_by_torch
from benchmarks.gpu.virtual_ranks import FUSED_STEP, Peers, cut

_RANKS = (2, 3, 4, 8)
_COUNTS = (5, 1000, 100_003)
_LARGE = 6_553_600
_IN_A_ROW = 200  # barriers that no host thread comes between
_F32 = 2**-24


def run(rows: Rows) -> None:
    """Reduce-scatter, allgather, and both with a step of SGD between them."""
    torch.manual_seed(20261126)
    ours = kernels_here(rows.place)
    if not Peers.are_in(ours):
        raise Impossible("this build has no kernels of peers")
    counts = _COUNTS[:2] if rows.quick else _COUNTS if rows.small else (*_COUNTS, _LARGE)
    for ranks, dtype in itertools.product(_RANKS, (torch.float32, torch.bfloat16)):
        peers = Peers(ours, rows.place, ranks)
        problems = []
        for count in counts:
            found = _pair(rows, peers, ranks, dtype, count)
            found += _fused(rows, peers, ranks, dtype, count)
            problems += [f"{count} elements: {problem}" for problem in found]
        problems += _in_a_row(rows, peers, ranks, dtype)
        if error := peers.error():
            problems.insert(0, error)
        name = f"collectives of {ranks} virtual ranks, {name_of(dtype)}"
        rows.check(name, not problems, on=ours.on, note="; ".join(problems[:3]))


def _inputs(rows: Rows, ranks: int, dtype: torch.dtype, count: int) -> list[Tensor]:
    return [torch.randn(count).to(rows.place.device, dtype) for _ in range(ranks)]


def _sum(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """In f64, and of the absolute values."""
    wide = torch.stack([t.cpu().double() for t in inputs])
    return wide.sum(0), wide.abs().sum(0)


def _pair(rows: Rows, peers: Peers, ranks: int, dtype: torch.dtype, count: int) -> list[str]:
    """Reduce-scatter, then allgather; both again, with the same bits."""
    inputs, device = _inputs(rows, ranks, dtype, count), rows.place.device
    exact, most = _sum(inputs)
    before: list[bytes] = []
    problems = []
    for turn in range(3):
        bounds = [peers.shard(count, rank) for rank in range(ranks)]
        shards = [Guarded(end - begin, torch.float32, device) for begin, end in bounds]
        outputs = [Guarded(count, dtype, device) for _ in range(ranks)]
        peers.each(lambda r: peers.reduce_scatter(r, inputs, shards[r].tensor, 0.25))  # noqa: B023
        whole = torch.cat([shard.tensor for shard in shards])
        tensors = [output.tensor for output in outputs]
        peers.each(lambda r: peers.allgather(r, shards[r].tensor, tensors))  # noqa: B023
        if not bool(((whole.cpu() - exact / 4).abs() <= ranks * _F32 * most + 1e-30).all()):
            problems.append("reduce_scatter: wrong sums")
        if not all(torch.equal(tensor, whole.to(dtype)) for tensor in tensors):
            problems.append("allgather: not the shards")
        if not all(guarded.is_intact() for guarded in (*shards, *outputs)):
            problems.append("written outside of the output")
        bits = [guarded.bits() for guarded in (*shards, *outputs)]
        if turn and bits != before:
            problems.append("other bits when run again")
        before = bits
    return problems


def _fused(rows: Rows, peers: Peers, ranks: int, dtype: torch.dtype, count: int) -> list[str]:
    """Two steps on shards beside the same on the whole in f64."""
    device = rows.place.device
    start = torch.randn(count)
    ranges = [(count // 3, 0.0), (count - count // 3, 1e-2)]
    bounds = [peers.shard(count, rank) for rank in range(ranks)]
    parameters = [Guarded(end - begin, torch.float32, device) for begin, end in bounds]
    momenta = [Guarded(end - begin, torch.float32, device) for begin, end in bounds]
    for momentum in momenta:
        momentum.tensor.zero_()
    for (begin, end), parameter in zip(bounds, parameters, strict=True):
        parameter.tensor.copy_(start[begin:end])
    outputs = [Guarded(count, dtype, device) for _ in range(ranks)]
    exact, exact_momenta = start.double(), torch.zeros(count, dtype=torch.float64)
    for _ in range(2):
        gradients = _inputs(rows, ranks, dtype, count)
        peers.each(
            lambda r: peers.fused(
                r,
                gradients,  # noqa: B023
                [output.tensor for output in outputs],
                parameters[r].tensor,
                momenta[r].tensor,
                ranges,
                FUSED_STEP,
            )
        )
        total, _ = _sum(gradients)
        sgd_by_torch(exact, exact_momenta, total, cut(ranges, 0, count), **FUSED_STEP)
    whole = torch.cat([parameter.tensor for parameter in parameters])
    problems = []
    if not torch.allclose(whole.cpu().double(), exact, rtol=1e-5, atol=1e-5):
        problems.append("fused: wrong parameters")
    if not all(torch.equal(output.tensor, whole.to(dtype)) for output in outputs):
        problems.append("fused: the outputs are not the parameters")
    if not all(guarded.is_intact() for guarded in (*parameters, *momenta, *outputs)):
        problems.append("fused: written outside of the output")
    return problems


def _in_a_row(rows: Rows, peers: Peers, ranks: int, dtype: torch.dtype) -> list[str]:
    """Calls behind each other: a rank may be one barrier ahead, and no more."""
    inputs = _inputs(rows, ranks, dtype, 64 * ranks)
    bounds = [peers.shard(64 * ranks, rank) for rank in range(ranks)]
    shards = [torch.empty(end - begin, device=rows.place.device) for begin, end in bounds]

    def many(rank: int) -> None:
        for _ in range(_IN_A_ROW if not rows.small else 2):
            peers.reduce_scatter(rank, inputs, shards[rank], 1.0)

    peers.each(many)
    exact, most = _sum(inputs)
    close = (torch.cat(shards).cpu() - exact).abs() <= ranks * _F32 * most + 1e-30
    return [] if bool(close.all()) else [f"{_IN_A_ROW} calls in a row: wrong sums"]

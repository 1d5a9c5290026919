"""Section: each kernel's result beside one in f64, its guards, and its bits when run again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from allreduce.optim import LARS, SGD
from benchmarks.gpu.place import STAND_IN
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.stand_ins import (
    Flat,
    Kernels,
    Layers,
    StandIns,
    kernels_here,
    name_of,
    reduce_on_cpu,
    sgd_by_torch,
)

_RANKS = (2, 3, 4, 8)
_ROUNDING = {"float64": 2**-53, "float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}
_GUARD = 64  # elements in front of an output and behind it
_POISON = 0xFF  # every byte: a NaN in every float
_COUNTS = (1, 7, 1020, 1024, 1028, 65_532, 65_552)
_LARGE = 6_553_600  # 25 MiB of f32


def run(rows: Rows) -> None:
    """Check what this build has."""
    torch.manual_seed(20261126)
    ours = kernels_here(rows.place)
    counts = _COUNTS[:4] if rows.quick else _COUNTS if rows.small else (*_COUNTS, _LARGE)
    reruns = 2 if rows.small else 20
    for ranks, dtype in itertools.product(_RANKS, _ROUNDING):
        some = counts if dtype in ("float32", "bfloat16") else [c for c in counts if c < _LARGE]
        _reduce(rows, ours, ranks, getattr(torch, dtype), some, reruns)
    if ours.has("pack"):
        for pair in itertools.product((torch.float32, torch.bfloat16, torch.float16), repeat=2):
            rows.attempt("pack", lambda: _pack(rows, ours, *pair), on=ours.on)  # noqa: B023
    else:
        rows.absent("pack, unpack", "this build has no such kernel")
    if ours.has("sgd"):
        kinds = itertools.product(("reference", "absorbed"), (torch.float32, torch.bfloat16))
        for kind in kinds:
            rows.attempt("sgd", lambda: _sgd(rows, ours, *kind, counts, reruns), on=ours.on)  # noqa: B023
    else:
        rows.absent("sgd", "this build has no such kernel")
    for optimizer in (SGD, LARS):
        rows.attempt(
            optimizer.__name__,
            lambda: _optimizer(rows, optimizer, reruns),  # noqa: B023
            on=ours.on,
        )


class Guarded:
    """An output full of NaN, with NaN around it."""

    def __init__(self, count: int, dtype: torch.dtype, device: str) -> None:
        size = torch.empty(0, dtype=dtype).element_size()
        nbytes = (count + 2 * _GUARD) * size
        self._bytes = torch.full((nbytes,), _POISON, dtype=torch.uint8, device=device)
        self._ends = _GUARD * size
        self.tensor = self._bytes.view(dtype)[_GUARD : _GUARD + count]

    def is_intact(self) -> bool:
        """Whether nothing was written outside."""
        ends = torch.cat([self._bytes[: self._ends], self._bytes[-self._ends :]])
        return bool((ends == _POISON).all())

    def bits(self) -> bytes:
        """All of the output, for comparison."""
        return self._bytes.cpu().numpy().tobytes()


def _reduce(
    rows: Rows,
    ours: Kernels | StandIns,
    ranks: int,
    dtype: torch.dtype,
    counts: Sequence[int],
    reruns: int,
) -> None:
    """An allreduce of virtual ranks: each reduces its part of all inputs, into all outputs."""
    problems: list[str] = []
    for count in counts:
        inputs = [torch.randn(count, dtype=torch.float64).to(dtype) for _ in range(ranks)]
        sources = [t.to(rows.place.device) for t in inputs]

        def turn(count: int = count, sources: list[Tensor] = sources) -> list[Guarded]:
            outs = [Guarded(count, dtype, rows.place.device) for _ in range(ranks)]
            for begin, end in _parts(count, ranks):
                ours.reduce_many(
                    [out.tensor[begin:end] for out in outs], [t[begin:end] for t in sources]
                )
            return outs

        first = turn()
        exact = torch.stack([t.double() for t in inputs]).sum(0)
        most = torch.stack([t.double().abs() for t in inputs]).sum(0)
        bound = ranks * _ROUNDING[name_of(dtype)] * most + 1e-30
        error = (first[0].tensor.cpu().double() - exact).abs()
        if not bool((error <= bound).all()):
            problems.append(f"{count} elements: error {float(error.nan_to_num(1e9).max()):.3g}")
        if any(out.bits() != first[0].bits() for out in first[1:]):
            problems.append(f"{count} elements: ranks differ")
        problems += _same_bits_as_the_cpu(first[0], inputs, ranks, count)
        problems += _again(turn, first, reruns if count < _LARGE else 3, count)
    name = f"allreduce of {ranks} virtual ranks, {name_of(dtype)}"
    rows.check(name, not problems, on=ours.on_reduce, note="; ".join(problems[:3]))


def _parts(count: int, ranks: int) -> Iterator[tuple[int, int]]:
    """Yield the part of each rank that has one; they begin at odd places, too."""
    bounds = [count * rank // ranks for rank in range(ranks + 1)]
    return (pair for pair in itertools.pairwise(bounds) if pair[0] < pair[1])


def _same_bits_as_the_cpu(
    out: Guarded, inputs: Sequence[Tensor], ranks: int, count: int
) -> list[str]:
    expected = Guarded(count, inputs[0].dtype, "cpu")
    reduce_on_cpu([expected.tensor], inputs)
    return [] if out.bits() == expected.bits() else [f"{count} elements: not the CPU table's bits"]


def _again(
    turn: Callable[[], list[Guarded]], first: Sequence[Guarded], reruns: int, count: int
) -> list[str]:
    problems = []
    if not all(out.is_intact() for out in first):
        problems.append(f"{count} elements: written outside of the output")
    before = [out.bits() for out in first]
    for _ in range(reruns):
        if [out.bits() for out in turn()] != before:
            problems.append(f"{count} elements: other bits when run again")
            break
    return problems


def _pack(
    rows: Rows, ours: Kernels | StandIns, dtype: torch.dtype, flat_dtype: torch.dtype
) -> None:
    """Many tensors of odd lengths; a product with a power of two and one rounding are exact."""
    device, problems, scale = rows.place.device, [], 0.125
    sizes = [1, 3, 64, 1000, 4096, 7, *([130] * 40), 33_001]
    tensors = [torch.randn(size).to(device, dtype) for size in sizes]
    flat = Guarded(sum(sizes), flat_dtype, device)
    ours.pack(tensors, flat.tensor, scale)
    expected = (torch.cat(tensors).float() * scale).to(flat_dtype)
    if not torch.equal(flat.tensor, expected):
        problems.append("pack: wrong elements")
    outs = [Guarded(size, dtype, device) for size in sizes]
    ours.unpack([out.tensor for out in outs], expected, scale)
    back = (expected.float() * scale).to(dtype)
    if not torch.equal(torch.cat([out.tensor for out in outs]), back):
        problems.append("unpack: wrong elements")
    if not all(out.is_intact() for out in (flat, *outs)):
        problems.append("written outside of the output")
    name = f"pack {name_of(dtype)} to {name_of(flat_dtype)}, and back"
    rows.check(name, not problems, on=ours.on, note="; ".join(problems))


def _sgd(
    rows: Rows,
    ours: Kernels | StandIns,
    form: str,
    dtype: torch.dtype,
    counts: Sequence[int],
    reruns: int,
) -> None:
    """Three steps with a changing rate, two ranges, a scale and a copy in bf16."""
    problems: list[str] = []
    device = rows.place.device
    for count in counts:
        start = torch.randn(count)
        gradients = [torch.randn(count).to(dtype) for _ in range(3)]
        ranges = [(count // 3, 0.0), (count - count // 3, 1e-2)]
        steps = [
            {"lr": lr, "momentum": 0.9, "nesterov": True, "form": form, "scale": 0.5}
            | {"correction": correction if form == "absorbed" else 1.0}
            for lr, correction in ((0.1, 1.0), (0.2, 2.0), (0.05, 0.25))
        ]

        def turn(
            count: int = count,
            start: Tensor = start,
            gradients: list[Tensor] = gradients,
            ranges: list[tuple[int, float]] = ranges,
            steps: list[dict[str, object]] = steps,
        ) -> list[Guarded]:
            parameters, momenta = (Guarded(count, torch.float32, device) for _ in range(2))
            copy = Guarded(count, torch.bfloat16, device)
            parameters.tensor.copy_(start)
            momenta.tensor.zero_()
            for gradient, step in zip(gradients, steps, strict=True):
                flat = Flat(
                    parameters=parameters.tensor,
                    momenta=momenta.tensor,
                    gradients=gradient.to(device),
                    copy=copy.tensor,
                )
                ours.sgd(flat, ranges, **step)()
            return [parameters, momenta, copy]

        first = turn()
        exact = [start.double(), torch.zeros(count, dtype=torch.float64)]
        for gradient, step in zip(gradients, steps, strict=True):
            sgd_by_torch(*exact, gradient.double(), ranges, **step)
        for what, out, want in zip(("parameters", "momenta"), first, exact, strict=False):
            if not torch.allclose(out.tensor.cpu().double(), want, rtol=1e-5, atol=1e-6):
                problems.append(f"{count} elements: {what} are wrong")
        if not torch.equal(first[2].tensor, first[0].tensor.bfloat16()):
            problems.append(f"{count} elements: the copy is not the parameters")
        problems += _again(turn, first, min(reruns, 3), count)
    name = f"sgd, {form} form, gradients {name_of(dtype)}"
    rows.check(name, not problems, on=ours.on, note="; ".join(problems[:3]))


def _optimizer(rows: Rows, kind: type[SGD], reruns: int) -> None:
    """Three steps of allreduce.optim on tensors anywhere, beside the same in f64 on the CPU."""
    shapes = [(64, 3, 7, 7), (64,), (1000, 513), (1001,), (3, 1), *([(17, 5)] * 90), (1, 0)]
    counts = [torch.Size(shape).numel() for shape in shapes]
    starts = [torch.randn(shape) for shape in shapes]
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    decays = [1e-2 if len(shape) > 1 else 0.0 for shape in shapes]

    def train(params: list[nn.Parameter]) -> None:
        optimizer = Layers(params=params, decays=decays).optimizer(kind, lr=1.0)
        for lr, of_step in zip((0.1, 0.2, 0.05), gradients, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr
            for param, gradient in zip(params, of_step, strict=True):
                param.grad = gradient.to(param)
            optimizer.step()

    def turn() -> list[Guarded]:
        outs = [Guarded(count, torch.float32, rows.place.device) for count in counts]
        for out, start in zip(outs, starts, strict=True):
            out.tensor.copy_(start.flatten())
        train([nn.Parameter(out.tensor.view(s)) for out, s in zip(outs, shapes, strict=True)])
        return outs

    first = turn()
    exact = [nn.Parameter(start.double()) for start in starts]
    train(exact)
    problems = [
        f"a tensor of {tuple(want.shape)} is wrong"
        for out, want in zip(first, exact, strict=True)
        if not torch.allclose(
            out.tensor.cpu().double(), want.detach().flatten(), rtol=1e-5, atol=1e-5
        )
    ]
    problems += _again(turn, first, min(reruns, 3), sum(counts))
    name = f"allreduce.optim.{kind.__name__}, {len(shapes)} tensors"
    rows.check(name, not problems, on=rows.place.on(STAND_IN), note="; ".join(problems[:3]))

"""Section: kernels as a share of the measured copy rate, beside torch's ways to do the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

from allreduce.optim import LARS, SGD, _kernels
from benchmarks.gpu.ceilings import copy_rate
from benchmarks.gpu.place import CPU
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.stand_ins import (
    REFERENCE,
    Flat,
    Kernels,
    Layers,
    StandIns,
    kernels_here,
)
from benchmarks.gpu.timing import host_seconds_each, seconds_each
from benchmarks.gpu.virtual_ranks import FUSED_STEP, Peers
from trainer.model.resnet import build_model

_SHARE = 85  # percent of the copy rate
_BEYOND_FOREACH, _BESIDE_FUSED = 2.5, 1.0
_WAYS = 8
Call = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where rows go, what to call, what copies reach, and a model's parameters by their sizes."""

    rows: Rows
    ours: Kernels | StandIns
    rate: float  # GB/s of a copy, read and written
    shapes: list[torch.Size]
    sizes: list[int]
    decays: list[float]

    @property
    def count(self) -> int:
        """All parameters."""
        return sum(self.sizes)

    def time(self, call: Call) -> float:
        """Seconds of a call. The arrays of ResNet-50 are larger than the L2 cache."""
        return seconds_each(self.rows.place, lambda _: call(), 2 if self.rows.small else 20)

    def add_host_time(self, name: str, call: Call, on: str) -> None:
        """A row of what a call takes this thread."""
        seconds = host_seconds_each(self.rows.place, lambda _: call(), 2 if self.rows.small else 20)
        self.rows.add(f"{name}: the host's time", seconds * 1e6, "us", on=on)

    def beside(
        self, name: str, bytes_each: int, mine: Call, others: dict[str, Call], *, on: str
    ) -> dict[str, float]:
        """Time ours as a share of the copy rate, and others in the same units; return seconds."""
        times = {"ours": self.time(mine)}
        rate = bytes_each * self.count / times["ours"] / 1e9
        note = f"{times['ours'] * 1e6:.1f} us for {bytes_each} B each of {self.count} parameters"
        share = 100 * rate / self.rate
        self.rows.judge(name, share, "% of copy", on=on, at_least=_SHARE, note=note)
        for other, call in others.items():
            times[other] = self.time(call)
            note = f"takes {times[other] / times['ours']:.2f} times as long as ours"
            where = self.rows.place.on(CPU)
            self.rows.add(f"{name}: {other}", times[other] * 1e6, "us", on=where, note=note)
        return times

    def tensor(self, dtype: torch.dtype = torch.float32, count: int = 0) -> Tensor:
        """Random values on the device."""
        return torch.randn(count or self.count, device=self.rows.place.device).to(dtype)


def run(rows: Rows) -> None:
    """The arrays are those of ResNet-50; of a tiny network without a GPU."""
    with torch.device("meta"):
        network = build_model("resnet8" if rows.small else "resnet50")
    shapes = [parameter.shape for parameter in network.parameters()]
    rate = copy_rate(rows.place, 1 << 22 if rows.small else 1 << 28)
    rows.add("copy rate", rate, "GB/s", on=rows.place.on(CPU), note="read and written")
    scene = Scene(
        rows=rows,
        ours=kernels_here(rows.place),
        rate=rate,
        shapes=shapes,
        sizes=[shape.numel() for shape in shapes],
        decays=[1e-4 if len(shape) > 1 else 0.0 for shape in shapes],
    )
    for part, name in ((_reduce, "reduce_many"), (_pack, "pack"), (_sgd, "sgd"), (_lars, "lars")):
        if scene.ours.has(name):
            rows.attempt(name, lambda: part(scene), on=scene.ours.on)  # noqa: B023
        else:
            rows.absent(name, "this build has no such kernel")
    if Peers.are_in(scene.ours):
        rows.attempt("fused", lambda: _fused(scene), on=scene.ours.on)
    else:
        rows.absent("fused reduce-scatter, SGD, allgather", "this build has no such kernel")


def _reduce(scene: Scene) -> None:
    """Eight sources, one output; by torch, seven additions."""
    for dtype in (torch.float32, torch.bfloat16):
        sources = [scene.tensor(dtype) for _ in range(_WAYS)]
        out = torch.empty_like(sources[0])

        def add(sources: list[Tensor] = sources, out: Tensor = out) -> None:
            torch.add(sources[0], sources[1], out=out)
            for source in sources[2:]:
                out.add_(source)

        def mine(sources: list[Tensor] = sources, out: Tensor = out) -> None:
            scene.ours.reduce_many([out], sources)

        name = f"{_WAYS}-way reduce, {str(dtype).removeprefix('torch.')}"
        each = (_WAYS + 1) * out.element_size()
        scene.beside(name, each, mine, {"torch's adds": add}, on=scene.ours.on_reduce)


def _pack(scene: Scene) -> None:
    """Gradients to a flat array: as they are; as bf16 and scaled; and the way back."""
    tensors = [scene.tensor(count=size) for size in scene.sizes]
    flat, half = scene.tensor(), scene.tensor(torch.bfloat16)
    parts, halves = list(flat.split(scene.sizes)), list(half.split(scene.sizes))
    on, ours = scene.ours.on, scene.ours
    scene.beside(
        "pack float32",
        8,
        lambda: ours.pack(tensors, flat),
        {
            "_foreach_copy_": lambda: torch._foreach_copy_(parts, tensors),
            "_flatten_dense_tensors": lambda: _flatten_dense_tensors(tensors),
        },
        on=on,
    )
    scene.beside(
        "pack float32 to bfloat16, scaled",
        6,
        lambda: ours.pack(tensors, half, 0.125),
        {
            "_foreach_mul and _foreach_copy_": lambda: torch._foreach_copy_(
                halves, torch._foreach_mul(tensors, 0.125)
            )
        },
        on=on,
    )
    scene.beside(
        "unpack bfloat16 to float32",
        6,
        lambda: ours.unpack(tensors, half),
        {"_foreach_copy_": lambda: torch._foreach_copy_(tensors, halves)},
        on=on,
    )


def _sgd(scene: Scene) -> None:
    """Nesterov, weight decay but on normalisations and biases; torch's two ways beside it.

    Ours is the kernel on flat arrays; and the whole step of allreduce.optim, on tensors anywhere.
    """
    on, place = scene.ours.on, scene.rows.place
    parameters, gradients, half = scene.tensor(), scene.tensor(), scene.tensor(torch.bfloat16)
    momenta = torch.zeros_like(parameters)
    ranges = list(zip(scene.sizes, scene.decays, strict=True))

    def mine(gradients: Tensor) -> Call:
        flat = Flat(parameters=parameters, momenta=momenta, gradients=gradients)
        return scene.ours.sgd(flat, ranges, **REFERENCE)

    others = {f"torch, {kind}=True": _torch_sgd(scene, kind) for kind in ("foreach", "fused")}
    name = "SGD, gradients float32"
    times = scene.beside(name, 20, mine(gradients), others, on=on)
    scene.beside("SGD, gradients bfloat16", 18, mine(half), {}, on=on)
    _whole_step(scene, SGD)
    for other, call in others.items():
        scene.add_host_time(other, call, place.on(CPU))
    for kind, bound in (("foreach", _BEYOND_FOREACH), ("fused", _BESIDE_FUSED)):
        ratio = times[f"torch, {kind}=True"] / times["ours"]
        label = f"{name}: torch's {kind} takes"
        scene.rows.judge(label, ratio, "times ours", on=place.on(on), at_least=bound)


def _layers(scene: Scene) -> Layers:
    """Tensors of their own, with gradients."""
    params = [nn.Parameter(scene.tensor(count=shape.numel()).view(shape)) for shape in scene.shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return Layers(params=params, decays=scene.decays)


def _whole_step(scene: Scene, kind: type[SGD]) -> None:
    optimizer = _layers(scene).optimizer(kind, lr=1e-3)
    name, on = f"allreduce.optim.{kind.__name__}.step", scene.ours.on
    scene.rows.add(name, scene.time(optimizer.step) * 1e6, "us", on=on)
    scene.add_host_time(name, optimizer.step, on)


def _lars(scene: Scene) -> None:
    """Parameters and gradients are read twice: 28 B for each. By torch, its foreach functions."""
    step = {"lr": 1e-3, "momentum": 0.9, "nesterov": True}
    others = {"torch's foreach": _layers(scene).optimizer(LARS, **step).step}
    mine = scene.ours.lars(_layers(scene), 0.001, **step)
    with mock.patch.object(_kernels, "kernels_on", return_value=None):
        scene.beside("LARS", 28, mine, others, on=scene.ours.on)
    _whole_step(scene, LARS)


def _torch_sgd(scene: Scene, kind: str) -> Call:
    groups: dict[float, list[Tensor]] = {}
    for size, decay in zip(scene.sizes, scene.decays, strict=True):
        parameter = scene.tensor(count=size).requires_grad_()
        parameter.grad = scene.tensor(count=size)
        groups.setdefault(decay, []).append(parameter)
    optimizer = torch.optim.SGD(
        [{"params": found, "weight_decay": decay} for decay, found in groups.items()],
        lr=1e-3,
        momentum=0.9,
        nesterov=True,
        **{kind: True},
    )
    return optimizer.step


def _fused(scene: Scene) -> None:
    """Eight virtual ranks on the one device: bf16 gradients and outputs, f32 shards."""
    peers = Peers(scene.ours, scene.rows.place, _WAYS)
    gradients, outputs = ([scene.tensor(torch.bfloat16) for _ in range(_WAYS)] for _ in range(2))
    shards = [peers.shard(scene.count, rank) for rank in range(_WAYS)]
    parameters = [scene.tensor(count=end - begin) for begin, end in shards]
    momenta = [torch.zeros_like(p) for p in parameters]
    ranges = list(zip(scene.sizes, scene.decays, strict=True))

    def fused(count: int, ranges: list[tuple[int, float]]) -> None:
        own = count if count == scene.count else count // _WAYS
        peers.each(
            lambda rank: peers.fused(
                rank,
                [t[:count] for t in gradients],
                [t[:count] for t in outputs],
                parameters[rank][:own],
                momenta[rank][:own],
                ranges,
                FUSED_STEP,
            )
        )

    name = f"fused reduce-scatter, SGD, allgather, {_WAYS} virtual ranks, bfloat16"
    each = 2 * 2 * _WAYS + 16
    scene.beside(name, each, lambda: fused(scene.count, ranges), {}, on=scene.ours.on)
    few = 64 * _WAYS
    seconds = scene.time(lambda: fused(few, [(few, 1e-4)]))
    note = "launches and barriers of all ranks"
    scene.rows.add(f"the same of {few}", seconds * 1e6, "us", on=scene.ours.on, note=note)
    if error := peers.error():
        scene.rows.check(name, False, on=scene.ours.on, note=error)

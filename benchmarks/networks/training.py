"""Training steps on emulated hosts, as in the paper's figures 7 and 8: one rank.

    python -m allreduce.emulate --hosts 8 --rate 6.25Gbit --delay 80us --dilation 24 -- \
        python -m benchmarks.networks.training --bytes-scale 8 --json found.json

Real: the ranks, the reducer of our DistributedDataParallel (or torch's, over Gloo), its buckets,
TCP. The model has the 161 parameters of ResNet-50. Not real: computation, which is a sleep. The
forward pass takes what is left of an iteration, and the backward pass is spread over the layers by
their multiplications. All ways of reducing take turns in the same processes.

Everything that is scaled must be scaled alike: `--bytes-scale 8` makes gradients 8 times smaller,
for the memory of one machine, so the network's rate must be 8 times lower too. The dilation comes
from the emulator: sleeps are as many times longer. Each host is one rank. Its 8 GPUs, and what they
do among themselves, are part of the sleep.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as StockDDP

from allreduce.commands.parser import at_least, parse_seconds
from allreduce.torch import DistributedDataParallel, communicator
from allreduce.tuning.cost import NETWORK
from trainer.dry_run.duration import BACKWARD, ITERATION
from trainer.model.resnet import build_model
from trainer.model.work import work_shares

_PIXELS = 224
_BUCKET, STOCK_BUCKET = 4 << 20, 25 << 20  # bytes
# Ways to reduce: bytes of a bucket, unscaled (0: each tensor by itself), and the algorithm.
OURS = {
    **{f"tensors, {algo}": (0, algo) for algo in ("halving_doubling", "ring")},
    **{f"buckets, {algo}": (_BUCKET, algo) for algo in ("halving_doubling", "ring", "auto")},
}
GLOO, ALONE = "Gloo, stock DDP", "no communication"


@dataclass(frozen=True, slots=True)
class Layer:
    """One parameter: its elements, and the part of the backward pass after which it is ready."""

    elements: int
    share: float


@functools.cache
def layers() -> list[Layer]:
    """Return the parameters of ResNet-50 in the order of the forward pass."""
    with torch.device("meta"):
        model = build_model("resnet50")
    shares = work_shares(model, _PIXELS)
    return [Layer(p.numel(), share) for p, share in zip(model.parameters(), shares, strict=True)]


class _Compute(torch.autograd.Function):
    """A layer: nothing on the way forth; on the way back a sleep, then the parameter's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor, seconds: float) -> Tensor:
        ctx.save_for_backward(parameter)
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (parameter,) = ctx.saved_tensors
        if ctx.seconds:
            time.sleep(ctx.seconds)
        return gradients[0], torch.zeros_like(parameter), None


class Model(nn.Module):
    """Parameters of ResNet-50's sizes, and the time that it takes while `computes`."""

    def __init__(self, scale: int, iteration: float) -> None:
        super().__init__()
        self.computes = True
        found = layers()
        backward = iteration * BACKWARD / ITERATION
        self.seconds = [backward * layer.share for layer in found]
        self.forward_seconds = iteration - backward
        self.weights = nn.ParameterList(
            torch.zeros(max(1, layer.elements // scale)) for layer in found
        )

    def forward(self, x: Tensor) -> Tensor:
        """Sleep for the forward pass, and remember the layers."""
        time.sleep(self.forward_seconds * self.computes)
        for weight, seconds in zip(self.weights, self.seconds, strict=True):
            x = _Compute.apply(x, weight, seconds * self.computes)
        return x


def ways(scale: int) -> Iterator[tuple[str, Callable[[Model], nn.Module]]]:
    """Return the ways to reduce the gradients of a model, by name."""

    def ours(algo: str, bucket_bytes: int) -> Callable[[Model], nn.Module]:
        return lambda model: DistributedDataParallel(model, bucket_bytes=bucket_bytes, algo=algo)

    def stock(model: Model) -> nn.Module:
        gloo = dist.new_group(backend="gloo")
        return StockDDP(model, process_group=gloo, bucket_cap_mb=STOCK_BUCKET / (1 << 20) / scale)

    yield ALONE, lambda model: model
    for name, (bucket_bytes, algo) in OURS.items():
        yield name, ours(algo, bucket_bytes // scale)
    yield GLOO, stock


def main() -> None:
    """Be one rank, and print seconds of an iteration on the emulated network."""
    options = _parser().parse_args()
    dilation = float(os.environ["ALLREDUCE_DILATION"])
    torch.set_num_threads(1)
    dist.init_process_group("hier")
    communicator().measure()
    network = _network(dilation)
    found = {}
    chosen = options.ways.split(",") if options.ways else None
    scale = options.bytes_scale
    for name, make in ways(scale):
        if chosen and not any(word in name for word in chosen):
            continue
        model = Model(scale, dilation * options.iteration)
        module = make(model)
        model.computes = False
        for _ in range(options.warm_up):  # of connections, which need no sleeps
            _step(module)
        model.computes = True
        found[name] = [_step(module) / dilation for _ in range(options.steps)]
        if dist.get_rank() == 0:
            taken = median(found[name])
            print(f"{dist.get_world_size():>4} hosts  {name:<36} {taken:.4f} s", flush=True)
    if dist.get_rank() == 0 and options.json:
        network["iteration"] = options.iteration
        options.json.write_text(json.dumps({**network, "seconds": found}))
    dist.destroy_process_group()


def _network(dilation: float) -> dict[str, Any]:
    """Return the network in words, and its links as they were measured before all steps."""
    comm = communicator()
    assert comm.tuning is not None
    found = asdict(comm.tuning.links[NETWORK])
    return {
        "network": os.environ["ALLREDUCE_EMULATED"],
        "link": {name: figure / dilation for name, figure in found.items()},
        "ranks_per_core": comm.layout.ranks_per_core,
    }


def _step(module: nn.Module) -> float:
    """Return the seconds of an iteration, of which each rank begins when the last one has ended."""
    begin = time.perf_counter()
    module(torch.zeros(1, requires_grad=True)).backward()
    return time.perf_counter() - begin


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks.training")
    add = parser.add_argument
    add("--bytes-scale", type=at_least(1), default=8)
    add("--iteration", type=parse_seconds, default=ITERATION, help="seconds of computation")
    add("--steps", type=at_least(1), default=3)
    add("--warm-up", type=at_least(1), default=3)
    add("--ways", default="", help="words of the names of those that run")
    add("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()

"""One rank of a world: python -m benchmarks.gpu.ranks FOLDER RANK SIZE BODY SPEC, by worlds.py."""

from __future__ import annotations

import hashlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from allreduce.commands.parent_death import die_with_parent
from benchmarks.gpu.memory import memory_on

Array = np.ndarray[Any, Any]
_TIMEOUT = 20.0  # seconds for a start and for each collective
CANONICAL = "halving_doubling"  # adds along one tree, which reduce_many of a single process does


class Member:
    """This rank, and what its world was told."""

    def __init__(self, folder: Path, rank: int, size: int, spec: dict[str, Any]) -> None:
        self.folder, self.rank, self.size, self.spec = folder, rank, size, spec

    def say(self, word: str) -> None:
        """Let the section know."""
        (self.folder / f"{self.rank}-{word}").touch()

    def communicator(self) -> Any:
        """Join the others, without torch; ALLREDUCE_NODES says on how many nodes."""
        from allreduce import Communicator
        from allreduce.rendezvous.store import FileStore

        store = FileStore(self.folder / "store", _TIMEOUT)
        return Communicator.from_store(store, self.rank, self.size, timeout=_TIMEOUT, measure=False)

    def join(self, backend: str) -> Any:
        """Join a process group of torch's; return torch.distributed."""
        from datetime import timedelta

        import torch
        import torch.distributed as dist

        if self.spec["device"] == "cuda":
            torch.cuda.set_device(0)
        if backend == "hier":
            import allreduce.torch  # noqa: F401  (registers it where it is not installed)
        dist.init_process_group(
            backend,
            init_method=f"file://{self.folder / 'torch-store'}",
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=_TIMEOUT),
        )
        return dist


def inputs_of(size: int, count: int) -> list[Array]:
    """The arrays of all ranks, known to each of them."""
    rng = np.random.default_rng(count)
    return [rng.standard_normal(count, dtype=np.float32) for _ in range(size)]


def judge(result: Array, inputs: list[Array]) -> dict[str, Any]:
    """A result beside the sum in f64, and beside that of a single process, by its bits."""
    from allreduce import _C

    wide = [array.astype(np.float64) for array in inputs]
    bound = len(inputs) * 2**-23 * sum(np.abs(array) for array in wide) + 1e-30
    alone = np.empty_like(result)
    _C.reduce_many([alone], inputs, "float32", "sum")
    return {
        "right": bool((np.abs(result - sum(wide)) <= bound).all()),
        "digest": hashlib.sha256(result.tobytes()).hexdigest(),
        "as_alone": result.tobytes() == alone.tobytes(),
    }


def core(member: Member) -> list[dict[str, Any]]:
    """Collectives of the core on device memory: results, and seconds of each size."""
    comm = member.communicator()
    memory = memory_on(member.spec["device"], member.spec.get("library", "torch"))
    found = []
    for count in member.spec["counts"]:
        inputs = inputs_of(member.size, count)
        x = memory.array(inputs[member.rank])
        comm.allreduce(x, algo=CANONICAL)
        verdict = judge(memory.read(x), inputs)
        y = memory.array(np.zeros(count, np.float32))
        verdict["seconds"] = timed(lambda y=y: comm.allreduce(y), memory.synchronize, member)
        found.append({"count": count, "stage": str(comm.device_stage), **verdict})
    memory.synchronize()
    comm.close()
    return found


def backend(member: Member) -> list[dict[str, Any]]:
    """The same by a backend of torch.distributed, on the tensors it is meant for."""
    import torch

    device = member.spec["device"]
    dist = member.join(member.spec["backend"])
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    found = []
    for count in member.spec["counts"]:
        inputs = inputs_of(member.size, count)
        x = torch.from_numpy(inputs[member.rank].copy()).to(device)
        dist.all_reduce(x)
        verdict = judge(x.cpu().numpy(), inputs)
        y = torch.zeros(count, device=device)
        verdict["seconds"] = timed(lambda y=y: dist.all_reduce(y), synchronize, member)
        found.append({"count": count, "device": str(x.device), **verdict})
    dist.destroy_process_group()
    return found


def sharded(member: Member) -> dict[str, Any]:
    """ShardedSGD as one kernel where it can be, and as three calls: the same steps by each."""
    import torch
    from torch import nn

    member.join("hier")
    from allreduce.optim import split_weight_decay
    from allreduce.torch import ShardedSGD

    ends, found = [], {}
    for fused in (None, False):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(301, 256), nn.LayerNorm(256), nn.Linear(256, 77))
        module.to(member.spec["device"])
        groups = split_weight_decay(module, 0.01)
        optimizer = ShardedSGD(groups, lr=0.1, fused=fused, algo=CANONICAL)
        torch.manual_seed(member.rank)
        for _ in range(5):
            optimizer.zero_grad()
            x = torch.randn(32, 301).to(member.spec["device"])
            module(x).square().mean().backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().cpu().flatten() for p in module.parameters()]))
        optimizer.state_dict()  # raises what a step has ended with
        found.setdefault("why_not", optimizer.why_not_fused)
    error = (ends[0] - ends[1]).norm() / ends[1].norm()
    digest = hashlib.sha256(ends[0].numpy().tobytes()).hexdigest()
    return {**found, "error": float(error), "digest": digest}


def timed(call: Callable[[], object], synchronize: Callable[[], object], member: Member) -> float:
    """Seconds of a call, calls in a row; all ranks make the same number."""
    for _ in range(2):
        call()
    synchronize()
    begin = time.perf_counter()
    for _ in range(member.spec["calls"]):
        call()
    synchronize()
    return (time.perf_counter() - begin) / member.spec["calls"]


def until_killed(member: Member) -> None:
    """Collectives without end; a rank dies, and the others must raise."""
    comm = member.communicator()
    memory = memory_on(member.spec["device"])
    x = memory.array(np.zeros(member.spec["count"], np.float32))
    comm.allreduce(x)
    memory.synchronize()
    member.say("running")
    while True:
        comm.allreduce(x)
        memory.synchronize()


def train(member: Member) -> dict[str, Any]:
    """Steps of a model in data-parallel form: images a second, and a digest of the weights."""
    from benchmarks.gpu import training

    return training.run_rank(member)


BODIES = {body.__name__: body for body in (core, backend, sharded, until_killed, train)}


def main() -> None:
    """Run a body; leave what it returned, or how it failed and when."""
    folder, rank, size, body, spec = sys.argv[1:]
    member = Member(Path(folder), int(rank), int(size), json.loads(spec))
    die_with_parent(member.spec["parent"])
    outcome: dict[str, Any] = {"error": "", "text": "", "result": None}
    try:
        outcome["result"] = BODIES[body](member)
    except BaseException as error:
        traceback.print_exc()
        outcome |= {"error": type(error).__name__, "text": str(error)}
    outcome["at"] = time.monotonic()
    part = member.folder / f"{rank}-outcome-part"
    part.write_text(json.dumps(outcome))
    part.replace(member.folder / f"{rank}-outcome")


if __name__ == "__main__":
    main()

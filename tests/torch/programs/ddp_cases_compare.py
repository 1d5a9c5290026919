"""Runs each of ddp_cases.py under both wrappers, and writes down how they compare."""

import json
import warnings
from typing import Any

import torch
import torch.distributed as dist
from ddp_cases import CASES, Wrap
from harness import FOLDER, RANK, WORLD_SIZE, join
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as StockDDP

from allreduce.torch import DistributedDataParallel as OurDDP


def run(name: str, wrap: Wrap) -> tuple[str, list[Tensor]]:
    """ "", or the name of the error; and the tensors."""
    torch.manual_seed(0)
    try:
        return "", CASES[name](wrap)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:160]}", []


def alike(tensors: list[Tensor]) -> bool:
    """Whether all ranks have the same values."""
    for tensor in tensors:
        if tensor.is_sparse:
            tensor = tensor.to_dense()
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        every = [torch.empty_like(tensor) for _ in range(WORLD_SIZE)]
        dist.all_gather(every, tensor.contiguous())
        if any(not torch.equal(other, every[0]) for other in every):
            return False
    return True


def equal(mine: Tensor, other: Tensor) -> bool:
    if mine.shape != other.shape or mine.dtype != other.dtype:
        return False
    relative = 1e-2 if mine.dtype == torch.bfloat16 else 1e-5
    return torch.allclose(mine.to_dense(), other.to_dense(), rtol=relative, atol=1e-6)


def verdict(name: str, wraps: list[Wrap]) -> tuple[str, str]:
    (error, theirs), (our_error, ours) = (run(name, wrap) for wrap in wraps)
    why = f"torch: {error} | ours: {our_error}"
    if error or our_error:
        return ("neither" if error and our_error else "only ours" if error else "only torch"), why
    same = len(ours) == len(theirs) and all(map(equal, ours, theirs))
    told = torch.tensor([same], dtype=torch.int32)
    dist.all_reduce(told, dist.ReduceOp.MIN)
    if told.item():
        return "same", why
    of_ranks = [alike(theirs), alike(ours)]
    return ("torch's ranks part" if of_ranks == [False, True] else f"differ {of_ranks}"), why


def main() -> None:
    join()
    gloo = dist.new_group(backend="gloo")

    def stock(module: nn.Module, *, default_group: bool = False, **options: Any) -> nn.Module:
        return StockDDP(module, process_group=None if default_group else gloo, **options)

    def ours(module: nn.Module, *, default_group: bool = False, **options: Any) -> nn.Module:
        return OurDDP(module, **options)

    found = {name: verdict(name, [stock, ours]) for name in CASES}
    (FOLDER / f"rank{RANK}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()

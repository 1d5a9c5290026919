"""Runs the checks of a program in order and writes down how each went."""

import json
import os
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import allreduce.torch

RANK = int(os.environ["RANK"])
WORLD_SIZE = int(os.environ["WORLD_SIZE"])
FOLDER = Path(os.environ["FOLDER"])
TIMEOUT = timedelta(seconds=30)

# Names differ between releases of torch; the old ones work in all.
warnings.simplefilter("ignore", FutureWarning)


def join(backend: str = "hier") -> None:
    assert hasattr(dist.Backend, "HIER"), allreduce.torch.__file__
    dist.init_process_group(
        backend,
        init_method=f"file://{FOLDER}/store",
        rank=RANK,
        world_size=WORLD_SIZE,
        timeout=TIMEOUT,
    )


def main(program: dict[str, Callable[[], None]]) -> None:
    """Runs every check_<name>; stops at the first error, since the ranks are then out of step."""
    results = {}
    torch.manual_seed(0)
    join()
    for name, check in program.items():
        if name.startswith("check_"):
            try:
                check()
                dist.barrier()
            except BaseException:
                results[name.removeprefix("check_")] = traceback.format_exc()
                break
            results[name.removeprefix("check_")] = ""
    (FOLDER / f"rank{RANK}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def raises(
    kind: type[BaseException] | tuple[type[BaseException], ...], call: Callable[[], object]
) -> str:
    """The message of the error of this kind that `call` raises."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind}")

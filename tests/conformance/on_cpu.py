"""The tests of torch's suite that need GPUs by their decorators alone, rewritten for the CPU.

The suite's source is rewritten, line by line, before it is compiled: devices become "cpu", and what
`torch.cuda` does for a process is left out. No assertion is changed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

_NAME = "torch.testing._internal.distributed.distributed_test"
_ARGUMENTS = r"\((?:[^()]|\([^()]*\))*\)"
_RANK = r"(?:self\.rank|rank|my_rank|device_id)"
_REWRITES = (
    (rf"\.cuda{_ARGUMENTS}", ".cpu()"),
    (rf"\bdevice={_RANK}\b", 'device="cpu"'),
    (r"\bdevice_ids=\[[^\]]*\]", "device_ids=None"),
    (r"\boutput_device=torch\.device\(\"cuda\"\)", "output_device=None"),
    (rf"\.to\({_RANK}\)", '.to("cpu")'),
    (rf"torch\.device\({_RANK}\)", 'torch.device("cpu")'),
    (r'(?<!\[)f?"cuda(?::[^"]*)?"', '"cpu"'),
    (r"(?<!from )\btorch\.cuda\.", "_cuda_of_the_cpu."),
)
_GATED = "_gated_by_device"


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


_CUDA = SimpleNamespace(
    set_device=_nothing,
    synchronize=_nothing,
    manual_seed=_nothing,
    empty_cache=_nothing,
    is_available=lambda: True,
    device_count=lambda: 64,
    current_device=lambda: "cpu",
    device=lambda _device: contextlib.nullcontext(),
)


def open_devices() -> None:
    """Lets tests pass that ask for GPUs, and marks them."""
    from torch.testing._internal import common_distributed

    def skip_if_lt_x_gpu(_gpus: int, **_options: Any) -> Callable[[Any], Any]:
        return skip_if_no_gpu

    def skip_if_no_gpu(test: Any) -> Any:
        setattr(test, _GATED, True)
        return test

    def init_multigpu_helper(world_size: int, _backend: str) -> dict[int, list[str]]:
        return {rank: ["cpu"] for rank in range(world_size)}

    common_distributed.skip_if_lt_x_gpu = skip_if_lt_x_gpu
    common_distributed.skip_if_no_gpu = skip_if_no_gpu
    common_distributed.init_multigpu_helper = init_multigpu_helper


def is_gated(test: Any) -> bool:
    """Whether a decorator of the test asks for GPUs."""
    return bool(getattr(test, _GATED, False))


def import_rewritten() -> ModuleType:
    """Imports the suite from its rewritten source."""
    spec = importlib.util.find_spec(_NAME)
    assert spec
    assert spec.origin
    text = Path(spec.origin).read_text()
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    module = importlib.util.module_from_spec(spec)
    module.__dict__["_cuda_of_the_cpu"] = _CUDA
    sys.modules[_NAME] = module
    exec(compile(text, spec.origin, "exec"), module.__dict__)  # torch's own file
    return module

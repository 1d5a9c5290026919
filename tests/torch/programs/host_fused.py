"""The fused step's kernel as its body on the CPU, and memory of the CPU's device runtime."""

import ctypes
import os
from collections.abc import Sequence

from allreduce.torch.sharded import step_by_kernel


class HostKernels:
    """With the functions of allreduce._cuda; `steps` counts calls."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["HOST_FUSED"])
        self._library.host_signals_bytes.restype = ctypes.c_size_t
        self.steps = 0

    def signals_bytes(self) -> int:
        return int(self._library.host_signals_bytes())

    def shard_of(self, count: int, num_ranks: int, rank: int) -> tuple[int, int]:
        bounds = (ctypes.c_size_t * 2)()
        self._library.host_shard_of(*map(ctypes.c_size_t, (count, num_ranks, rank)), bounds)
        return bounds[0], bounds[1]

    def reduce_scatter_sgd_allgather(
        self,
        signals: Sequence[int],
        rank: int,
        timeout: float,
        gradients: Sequence[int],
        outputs: Sequence[int],
        dtype: str,
        parameters: int,
        momenta: int,
        ranges: Sequence[tuple[int, float]],
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        scale: float,
        stream: int,
    ) -> None:
        """As `_cuda`'s, but the caller waits for it."""
        assert (dtype, stream) == ("float32", 0)
        self.steps += 1
        size, ((count, decay),) = len(signals), ranges
        tables = [(ctypes.c_void_p * size)(*table) for table in (signals, gradients, outputs)]
        self._library.host_fused(
            tables[0],
            *map(ctypes.c_size_t, (size, rank)),
            ctypes.c_double(timeout),
            *tables[1:],
            *map(ctypes.c_void_p, (parameters, momenta)),
            ctypes.c_size_t(count),
            *map(ctypes.c_double, (decay, lr, momentum)),
            ctypes.c_bool(nesterov),
            ctypes.c_double(scale),
        )


def install() -> HostKernels:
    """Tensors on the CPU go to the kernel, too."""
    kernels = HostKernels()
    step_by_kernel.kernels_on = lambda device: kernels if device.type == "cpu" else None
    return kernels

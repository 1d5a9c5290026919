"""Where and in which precision a process computes, and what makes its step fast or repeatable."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from trainer.config.options import Config, ConfigError
from trainer.data import DatasetInfo
from trainer.data.normalize import Normalize

if TYPE_CHECKING:
    from allreduce import Communicator

__all__ = ["HALF", "Precision", "choose_device", "make_deterministic"]

_ID = 16  # bytes
Autocast = contextlib.AbstractContextManager[Any]

HALF = {"f32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # by the options' names


class Precision:
    """Device, dtype and memory order of a process's computation, and its loss scaler.

    Weights, gradients and everything that is averaged stay in float32, and so does what is reduced
    unless --wire-dtype says otherwise; with bf16 and fp16 the network runs under autocast. fp16
    scales the loss so that small gradients do not vanish. Gradients are unscaled and looked at
    after they are reduced, when they are the same on all processes: an overflow on any one becomes
    one on all, and all skip the update and lower the scale alike.

    comm: of the job, whose processes agree on who takes which GPU; None for a process alone.
    device: a torch.device. dtype: of the network's input. memory_format: of images and weights.
    """

    def __init__(self, config: Config, comm: Communicator | None = None) -> None:
        self.device, self._why_cpu = _device(config, comm)
        on_gpu = self.device.type == "cuda"
        name = config.precision
        self.name = ("bf16" if on_gpu else "f32") if name == "auto" else name
        last = on_gpu if config.channels_last == "auto" else config.channels_last == "on"
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        self._dtype = HALF[self.name]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")
        if config.cuda_graphs and not on_gpu:
            raise ConfigError("--cuda-graphs: there is no GPU here; leave it out")
        if config.cuda_graphs and config.processes > 1:
            raise ConfigError("--cuda-graphs: is for jobs of one process so far; leave it out")

    def __str__(self) -> str:
        order = ", channels last" if self.memory_format is torch.channels_last else ""
        return f"{self.device.type}{self._why_cpu}, {self.name}{order}"

    def place(self, network: nn.Module) -> nn.Module:
        """Moves the network to the device, its convolutions in the memory order; gives it back."""
        return network.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]

    def normalize(self, info: DatasetInfo) -> Normalize:
        """What makes the network's input of uint8 images, on the device and in the order."""
        return Normalize(info, device=self.device, memory_format=self.memory_format)

    def autocast(self) -> Autocast:
        """Inside, the network computes in the precision."""
        if self._dtype is None:
            return contextlib.nullcontext()
        # Graphs keep addresses, so the copies of the weights may not be kept for the next call.
        return torch.autocast(self.device.type, self._dtype, cache_enabled=False)

    def scaled(self, loss: Tensor) -> Tensor:
        """What to call the backward pass on."""
        return self.scaler.scale(loss)

    def step(self, optimizer: Optimizer) -> None:
        """The optimizer's step, on gradients without the scale; none where they overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def speed_up(self, network: nn.Module, config: Config) -> None:
        """Compiles the network, or records it as CUDA graphs, if the options ask for it.

        Its names and its calls stay as they were. Do it once it is placed and wrapped.
        """
        if config.compile:
            network.compile()
        if config.cuda_graphs:
            _record(network, self.autocast)


def make_deterministic(config: Config) -> None:
    """Has torch refuse, or replace, what does not give the same bits twice, if asked to."""
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _device(config: Config, comm: Communicator | None) -> tuple[torch.device, str]:
    """This process's device, and for the log why it is not one of the GPUs that are here."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or config.processes // config.machines)
    device = choose_device(
        config.device,
        gpus=gpus,
        local_rank=int(os.environ.get("LOCAL_RANK") or 0),
        local_processes=local,
        apart=_see_gpus_of_their_own(comm, gpus),
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where what names no device is made
        torch.backends.cudnn.benchmark = not config.deterministic  # shapes do not change
        return device, ""
    if gpus == 0 or config.device == "cpu":
        return device, ""
    return device, f" (GPUs that {local} processes see here: {gpus}, and each needs its own)"


def choose_device(
    asked: str, *, gpus: int, local_rank: int, local_processes: int, apart: bool = False
) -> torch.device:
    """One GPU for each process of this machine, where there are as many and they are wanted.

    gpus: that this process sees. apart: no two processes see the same first GPU, as where a
    scheduler binds GPUs to tasks. ConfigError if --device cuda asks for more than there are.
    """
    if asked == "cuda" and gpus == 0:
        raise ConfigError("--device cuda: torch finds no GPU here; leave it out, or give cpu")
    index = local_rank if gpus >= max(1, local_processes) else 0 if gpus and apart else None
    if asked == "cuda" and index is None:
        raise ConfigError(
            f"--device cuda: {local_processes} processes on this machine have {gpus} GPU"
            f"{'s' * (gpus > 1)} between them, and each needs its own; add --workers-virtual, so "
            "that there are fewer processes, or give cpu"
        )
    if asked == "cpu" or index is None:
        return torch.device("cpu")
    return torch.device("cuda", index)


def _see_gpus_of_their_own(comm: Communicator | None, gpus: int) -> bool:
    """Whether each process of the job sees a GPU first that no other one sees first."""
    if comm is None:
        return gpus > 0
    first = comm.allgather(np.frombuffer(_first_gpu() if gpus else bytes(_ID), np.uint8)[None])
    return bool(first.any(1).all()) and len(np.unique(first, axis=0)) == comm.world_size


def _first_gpu() -> bytes:
    """What tells the first GPU that this process sees from all others; zeros if torch does not."""
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    return hashlib.blake2b(str(uuid).encode(), digest_size=_ID).digest() if uuid else bytes(_ID)


def _record(network: nn.Module, autocast: Callable[[], Autocast]) -> None:
    """Replaces forward by one that records graphs at its first training batch, and replays them."""
    eager = network.forward

    def first(images: Tensor) -> Any:
        if not network.training:
            return eager(images)
        network.forward = eager
        buffers = [buffer.clone() for buffer in network.buffers()]
        with autocast():
            torch.cuda.make_graphed_callables(network, (images.clone(),))
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)  # recording has run batches of its own
        return network(images)

    network.forward = first

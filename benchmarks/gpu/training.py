"""Steps of a ResNet on one device: by themselves, wrapped in DDP, or as a rank of two."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from trainer.model.resnet import build_model

if TYPE_CHECKING:
    from benchmarks.gpu.ranks import Member

_WARM_UP = 8  # steps: cuDNN chooses its algorithms, DDP makes its buckets
_WARM_UP_ON_CPU = 2


class Trainee:
    """A network, its optimizer and one batch of noise. side: of the square images, in pixels."""

    def __init__(
        self,
        device: str,
        *,
        model: str,
        batch: int,
        side: int,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        bare = build_model(model).to(device=device, memory_format=torch.channels_last)
        self._device = device
        self._batch = batch
        self.network = wrap(bare)
        self._optimizer = torch.optim.SGD(
            bare.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True
        )
        images = torch.randn(batch, 3, side, side, device=device)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._labels = torch.randint(1000, (batch,), device=device)

    def step(self) -> None:
        """Forward in bf16 on a GPU, in f32 elsewhere; backward; update."""
        self._optimizer.zero_grad()
        on_gpu = self._device == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext():
            loss = F.cross_entropy(self.network(self._images), self._labels)
        loss.backward()
        self._optimizer.step()

    def warm_up(self) -> None:
        """Steps that are not timed."""
        for _ in range(_WARM_UP if self._device == "cuda" else _WARM_UP_ON_CPU):
            self.step()

    def images_per_second(self, steps: int) -> float:
        """Of steps in a row, by CUDA's events on a GPU."""
        if self._device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(steps):
                self.step()
            end.record()
            end.synchronize()
            return self._batch * steps * 1e3 / float(begin.elapsed_time(end))
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        return self._batch * steps / (time.perf_counter() - began)

    def digest(self) -> str:
        """Of the weights' bits."""
        whole = hashlib.sha256()
        for parameter in self.network.parameters():
            whole.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        return whole.hexdigest()


def ours(network: nn.Module) -> nn.Module:
    """Wrapped in our DistributedDataParallel."""
    from allreduce.torch import DistributedDataParallel

    return DistributedDataParallel(network)


def ours_alone(network: nn.Module) -> nn.Module:
    """Wrapped in ours with its hooks and buckets, which one rank otherwise does without."""
    from allreduce.torch import DistributedDataParallel

    class Reducing(DistributedDataParallel):
        _reduces_alone = True

    return Reducing(network)


def stock(network: nn.Module) -> nn.Module:
    """Wrapped in torch's, on the default group."""
    return nn.parallel.DistributedDataParallel(
        network, gradient_as_bucket_view=True, broadcast_buffers=False
    )


WRAPPERS = {"ours": ours, "stock": stock}


def run_rank(member: Member) -> dict[str, Any]:
    """One rank's part; all ranks begin the timed steps together."""
    spec = member.spec
    dist = member.join("hier")
    trainee = Trainee(spec["device"], wrap=WRAPPERS[spec["wrapper"]], **spec["task"])
    trainee.warm_up()
    dist.barrier()
    rate = trainee.images_per_second(spec["steps"])
    digest = trainee.digest()
    dist.destroy_process_group()
    return {"images_per_second": rate, "digest": digest}

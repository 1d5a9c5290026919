"""What a checkpoint holds: collected from all workers, and given back to all, perhaps to others."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from allreduce import Communicator

__all__ = ["Holder", "RandomStates", "States", "seed_all"]


class Holder(Protocol):
    """Anything with a state, as modules and optimizers have it."""

    def state_dict(self) -> dict[str, Any]:
        """The state: tensors, numbers, text, and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Takes a state over."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """All that training goes on from, by name.

    Holders in `common` are alike on all processes: rank 0's are saved, and all get them back. Those
    in `workers` differ: their states are tensors named "WORKER.name", for each of the workers that
    live in this process. Worker w of a resumed run gets those of worker w mod k, where k workers
    had been.
    """

    common: Mapping[str, Holder]
    workers: Mapping[str, Holder]

    def collect(self, comm: Communicator) -> dict[str, Any] | None:
        """Copies of all states in host memory, on rank 0; None elsewhere. Every rank calls it."""
        mine = {name: holder.state_dict() for name, holder in self.workers.items()}
        parts = _gather(comm, _packed(mine))
        if comm.rank != 0:
            return None
        workers: dict[str, dict[str, Tensor]] = {name: {} for name in self.workers}
        for part in parts:
            for name, tensors in _unpacked(part).items():
                workers[name].update(tensors)
        common = {name: holder.state_dict() for name, holder in self.common.items()}
        return {**tree_map(_copied, common), "workers": workers}

    def restore(self, payload: bytes, workers_before: int) -> None:
        """Gives all holders their states back from what `collect` gave; ValueError if one lacks.

        The payload is what `packed` made of it; `workers_before` workers had been.
        """
        saved = _unpacked(payload)
        for name, holder in self.common.items():
            holder.load_state_dict(_part(saved, name))
        for name, holder in self.workers.items():
            before = _part(saved["workers"], name)
            wanted = (key.partition(".") for key in holder.state_dict())
            holder.load_state_dict(
                {
                    f"{w}.{rest}": before[f"{int(w) % workers_before}.{rest}"]
                    for w, _, rest in wanted
                }
            )

    @staticmethod
    def packed(collected: Mapping[str, Any]) -> memoryview:
        """The bytes of `torch.save`."""
        return _packed(collected)


class RandomStates:
    """The states of torch's, NumPy's and Python's global generators, in the form for workers."""

    def __init__(self, workers: Sequence[int]) -> None:
        self._workers = workers  # that live in this process and share its generators

    def state_dict(self) -> dict[str, Tensor]:
        """uint8 or int64 tensors, the same for each worker here."""
        _, keys, position, *_ = np.random.get_state(legacy=True)
        state = {
            "torch": torch.get_rng_state(),
            "numpy": torch.tensor([*map(int, keys), int(position)]),
            "python": torch.tensor(random.getstate()[1]),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return {f"{w}.{name}": tensor for w in self._workers for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> None:
        """Takes over what the first worker here had."""
        first = self._workers[0]
        torch.set_rng_state(state[f"{first}.torch"])
        *keys, position = state[f"{first}.numpy"].tolist()
        np.random.set_state(("MT19937", np.array(keys, np.uint32), position, 0, 0.0))
        random.setstate((3, tuple(state[f"{first}.python"].tolist()), None))
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(state[f"{first}.cuda"])


def seed_all(seed: int) -> None:
    """Seeds torch's, NumPy's and Python's global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def _packed(value: Mapping[str, Any]) -> memoryview:
    stream = io.BytesIO()
    torch.save(dict(value), stream)
    return stream.getbuffer()


def _unpacked(data: bytes | memoryview) -> dict[str, Any]:
    loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    assert isinstance(loaded, dict)
    return loaded


def _part(saved: Mapping[str, Any], name: str) -> Any:
    if name not in saved:
        raise ValueError(f"the checkpoint holds no {name}; it was written with other options")
    return saved[name]


def _gather(comm: Communicator, mine: memoryview) -> list[bytes]:
    """The bytes of all ranks on rank 0; nothing elsewhere."""
    data = np.frombuffer(mine, np.uint8)
    sizes = [int(size) for size in comm.allgather(np.array([data.size]))]
    joined = comm.gather(data.copy(), rows=sizes)
    if joined is None:
        return []
    ends = np.cumsum(sizes)
    return [joined[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]

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

__all__ = ["Holder", "OwnStates", "RandomStates", "States", "renamed", "seed_all"]

OwnStates = dict[str, dict[str, Tensor]]  # tensors named "WORKER.name", by name of the holder


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
        return {**self.common_states(), "workers": workers}

    def common_states(self) -> dict[str, Any]:
        """Copies in host memory of what is alike on all processes."""
        common = {name: holder.state_dict() for name, holder in self.common.items()}
        copied: dict[str, Any] = tree_map(_copied, common)
        return copied

    def own_states(self) -> OwnStates:
        """What differs, of the workers in this process: not copied, the first one named "0"."""
        first = self._first
        return {name: renamed(holder.state_dict(), -first) for name, holder in self.workers.items()}

    def restore_own(self, common: bytes, own: OwnStates) -> None:
        """Gives all holders their states back: the packed `common_states`, and `own_states`."""
        saved = _unpacked(common)
        for name, holder in self.common.items():
            holder.load_state_dict(_part(saved, name))
        for name, holder in self.workers.items():
            holder.load_state_dict(renamed(own[name], self._first))

    @property
    def _first(self) -> int:
        """The first of the workers in this process."""
        keys = (key for holder in self.workers.values() for key in holder.state_dict())
        return min((int(key.partition(".")[0]) for key in keys), default=0)

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
        """uint8 or int64 tensors, the same for each worker here.

        NumPy and Python make normal numbers in pairs: the one that is kept for the next call comes
        last, as a flag and its bits.
        """
        _, keys, position, kept, second = np.random.get_state(legacy=True)
        _, numbers, after = random.getstate()
        state = {
            "torch": torch.get_rng_state(),
            "numpy": torch.tensor(
                [*map(int, keys), int(position), *_pair(float(second) if kept else None)]
            ),
            "python": torch.tensor([*numbers, *_pair(after)]),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return {f"{w}.{name}": tensor for w in self._workers for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> None:
        """Takes over what the first worker here had."""
        first = self._workers[0]
        torch.set_rng_state(state[f"{first}.torch"])
        (*keys, position), second = _split(state[f"{first}.numpy"])
        kept = second is not None
        np.random.set_state(("MT19937", np.array(keys, np.uint32), position, kept, second or 0.0))
        numbers, after = _split(state[f"{first}.python"])
        random.setstate((3, tuple(numbers), after))
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(state[f"{first}.cuda"])


_WORDS = 625  # of a Mersenne Twister: 624 and its position


def _pair(kept: float | None) -> tuple[int, int]:
    """A number that may be absent: whether it is there, and its bits."""
    return (0, 0) if kept is None else (1, int(np.float64(kept).view(np.int64)))


def _split(state: Tensor) -> tuple[list[int], float | None]:
    """The generator's words, and the number that it kept; older checkpoints hold none."""
    words: list[int] = state.tolist()
    kept, bits = words[_WORDS:] or (0, 0)
    return words[:_WORDS], float(np.int64(bits).view(np.float64)) if kept else None


def renamed(state: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
    """The states of workers w under the names of workers w + step."""
    parts = ((name.partition("."), tensor) for name, tensor in state.items())
    return {f"{int(w) + step}.{rest}": tensor for (w, _, rest), tensor in parts}


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

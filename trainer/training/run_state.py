"""Everything a worker trains with, how far it has come, and where its time went."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.file import Facts
from trainer.output.end_table import PHASES

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.swa_utils import AveragedModel

    from allreduce import Communicator
    from allreduce.optim import SGD
    from allreduce.torch import DistributedDataParallel
    from trainer.checkpoint.states import RandomStates
    from trainer.checkpoint.writer import Saver
    from trainer.config.options import Config
    from trainer.data import Dataset
    from trainer.data.feed import Feed
    from trainer.data.normalize import Normalize
    from trainer.data.sampler import EpochSampler
    from trainer.model.precision import Precision
    from trainer.training.learning_rate import Schedule
    from trainer.training.loss_guard import Guard
    from trainer.training.profiler import Profiler
    from trainer.training.replicas import Replicas
    from trainer.training.virtual_workers import VirtualWorkers

__all__ = ["Job", "Stopwatch"]


class Stopwatch:
    """Seconds by phase; every lap belongs to one, so that the phases add up to the whole."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.start()

    def start(self) -> None:
        """What passed since the last lap belongs to no phase."""
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """What passed since the last lap belongs to `phase`."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def move(self, seconds: float, source: str, target: str) -> None:
        """`seconds` of phase `source` were really of `target`."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds


@dataclass(slots=True, kw_only=True)
class Job:
    """Everything a worker trains with, and how far it has come.

    `epoch` (from 0) is being trained, and the first `offset` images of its permutation are used.
    """

    config: Config
    comm: Communicator
    dataset: Dataset
    precision: Precision
    normalize: Normalize
    sampler: EpochSampler
    model: DistributedDataParallel
    virtual: VirtualWorkers
    average: AveragedModel | None
    optimizer: SGD
    schedule: Schedule
    guard: Guard
    replicas: Replicas
    saver: Saver
    profiler: Profiler
    epoch: int = 0
    offset: int = 0
    images: int = 0  # trained on so far
    best_error: float = math.inf
    last_test: dict[str, Any] = field(default_factory=dict)
    watch: Stopwatch = field(default_factory=Stopwatch)
    images_before: int = 0  # those of them before this start
    random: RandomStates | None = None  # of an elastic job
    random_before: dict[str, Tensor] = field(default_factory=dict)  # when the iteration began
    feed: Feed = field(init=False)  # opened when training begins
    traffic_before: dict[str, int] = field(init=False)
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.traffic_before = dict(self.comm.traffic())

    @property
    def iteration(self) -> int:
        """Iterations done, counted as if all had been of this run's kn."""
        return self.epoch * self.sampler.iterations + self.offset // self.config.minibatch

    @property
    def progress(self) -> float:
        """The position in the run, in epochs."""
        return self.epoch + self.offset / (self.sampler.iterations * self.config.minibatch)

    @property
    def test_is_due(self) -> bool:
        """Whether an epoch, or the run, has ended and was not tested yet."""
        paused = self.offset == 0 < self.epoch or self.iteration >= self.last_iteration
        return paused and self.last_test.get("epoch") != self.progress

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train or to test."""
        return self.iteration >= self.last_iteration and not self.test_is_due

    @property
    def facts(self) -> Facts:
        """The position and all else that a checkpoint says without torch."""
        config = self.config
        spent = {"images": self.images, "elapsed": time.perf_counter() - self.began}
        return Facts(
            epoch=self.epoch,
            offset=self.offset,
            iteration=self.iteration,
            progress=self.progress,
            workers=config.workers,
            minibatch=config.minibatch,
            config=asdict(config),
            best_error=self.best_error if math.isfinite(self.best_error) else None,
            test=self.last_test,
            spent={**self.watch.seconds, **spent},
        )

    def begin_iteration(self) -> None:
        """Before an iteration's forward passes: what is kept should it be dropped."""
        self.guard.begin()
        if self.random:
            self.random_before = self.random.state_dict()

    def save(self, *, best: bool = False) -> None:
        """Saves a checkpoint, if the options want any; every process calls it."""
        self.saver.save(self.facts, best=best)

    def move_to(self, epoch: int, offset: int) -> None:
        """Sets the position; where fewer than kn images of an epoch are left, to the next one."""
        over = self.sampler.size - offset < self.config.minibatch
        self.epoch, self.offset = (epoch + 1, 0) if over else (epoch, offset)

    @property
    def last_iteration(self) -> int:
        """How many iterations the run has."""
        whole = self.config.epochs * self.sampler.iterations
        return min(whole, self.config.max_iterations or whole)

"""Checkpoints of a running job: when one is due, copied at once and written by a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer.checkpoint.file import Checkpoints, Facts, write
from trainer.checkpoint.states import States

if TYPE_CHECKING:
    from allreduce import Communicator
    from trainer.config.options import Config

__all__ = ["BAD_LOSS", "Saver"]

BAD_LOSS = "bad_loss.pt"  # the state whose loss was bad; `--resume auto` does not take it


class Saver:
    """Saves the states of a run; every process has one, and rank 0's writes.

    `every` is a number of iterations, "epoch", or "never". While training goes on one thread
    writes; a file that takes longer than `deadline` seconds makes the next one be left out. What
    could not be written is said through `say`, and training goes on.
    """

    def __init__(
        self,
        config: Config,
        comm: Communicator,
        states: States,
        checkpoints: Checkpoints,
        *,
        say: Callable[[str], None] = print,
    ) -> None:
        self._config, self._comm, self._states = config, comm, states
        self._checkpoints, self.say = checkpoints, say
        self._every: int | Literal["epoch", "never"] = config.save_every
        self._thread: threading.Thread | None = None

    def went_on_from(self, path: Path) -> None:
        """The run goes on from `path`, which is kept as long as this process runs."""
        self._checkpoints.went_on_from(path)

    @property
    def resumed(self) -> Path | None:
        """What the run went on from, if from a checkpoint."""
        return self._checkpoints.resumed

    def due(self, iteration: int) -> bool:
        """Whether a checkpoint is due after `iteration` iterations, in the middle of an epoch."""
        return isinstance(self._every, int) and iteration % self._every == 0

    def save(self, facts: Facts, *, best: bool = False) -> None:
        """Saves what there is now; every process calls it. Returns before it is on the disk."""
        if self._every == "never":
            return
        collected = self._states.collect(self._comm)
        if collected is not None and self._ready(facts.name):
            self._thread = threading.Thread(
                target=self._write, args=(collected, facts, best), name="checkpoint", daemon=True
            )
            self._thread.start()

    def set_aside(self, facts: Facts) -> None:
        """Keeps the present state for inspection only; what was saved of it is no longer resumed.

        Every process calls it.
        """
        if self._every == "never":
            return
        collected = self._states.collect(self._comm)
        if collected is None or not self._ready(BAD_LOSS):
            return
        try:
            aside = self._checkpoints.set_aside(facts, BAD_LOSS)
        except OSError as error:
            self.say(f"{facts.name} could not be renamed ({error.strerror})")
            return
        if aside is None:
            self._write(collected, facts, False, name=BAD_LOSS)
        good = next((path for path, _ in self._checkpoints.usable([])), None)
        self.say(
            f"the state that had this loss is {self._checkpoints.directory / BAD_LOSS}; "
            f"the last good one is {good or 'none'}"
        )

    def close(self) -> None:
        """Waits until the last file is written; at most the deadline."""
        self._ready("")

    def _ready(self, name: str) -> bool:
        """Waits for the thread; False if it still writes at the deadline."""
        if self._thread is None:
            return True
        self._thread.join(self._config.timeout)
        if self._thread.is_alive():
            left_out = f"; {name} is left out" if name else ""
            waited = f"after {self._config.timeout:g} s"
            self.say(f"the last checkpoint is still being written {waited}{left_out}")
            return False
        self._thread = None
        return True

    def _write(self, collected: dict[str, Any], facts: Facts, best: bool, name: str = "") -> None:
        try:
            payload = self._states.packed(collected)
            if name:
                write(self._checkpoints.directory / name, payload, facts)
            else:
                self._checkpoints.add(payload, facts, best=best, keep=self._config.keep)
        except OSError as error:
            before = next((path for path, _ in self._checkpoints.usable([])), None)
            self.say(
                f"checkpoint {name or facts.name} could not be written ({error.strerror}); "
                + (f"{before} stays the last one" if before else "there is none yet")
            )

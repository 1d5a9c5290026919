"""Deaths of workers of an elastic job, as its launcher sees them.

Needs no torch.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

__all__ = ["OUTPUT", "STORE", "Deaths", "is_dead", "note_dead", "open_store"]

STORE = "TRAINER_STORE"  # the variable that names the store's directory
OUTPUT = "TRAINER_OUTPUT"  # the variable for descriptors of the job's stdout and stderr


@contextlib.contextmanager
def open_store(wanted: bool) -> Iterator[Path | None]:
    """A directory that lasts as long as the job; None where none is wanted."""
    if not wanted:
        yield None
        return
    path = Path(tempfile.mkdtemp(prefix="hier-trainer-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def note_dead(store: Path, worker: int) -> None:
    """Notes that this one is dead, or given up by the others; by its number at the start."""
    (store / f"dead-{worker}").touch()


def is_dead(store: Path, worker: int) -> bool:
    """Whether that was noted."""
    return (store / f"dead-{worker}").exists()


class Deaths:
    """Notes deaths in the store at once, and tells of one after `grace` seconds.

    tell: called with the number of a worker that died while another one lives.
    """

    def __init__(
        self, store: Path, grace: float, tell: Callable[[int], None], what: str = "worker"
    ) -> None:
        self._store, self._grace, self._tell, self._what = store, grace, tell, what
        self._began = time.monotonic()
        self._seen: dict[int, float] = {}
        self._left: dict[int, float] = {}
        self.told: set[int] = set()
        self.silent: set[int] = set()  # that did not answer, and were killed
        self.all = False  # nobody is left, and nobody ended well

    def see(self, codes: Sequence[int | None], good: Sequence[int]) -> None:
        """Looks at the exit codes of all workers; None: it runs."""
        now = time.monotonic()
        for worker, code in enumerate(codes):
            if code is not None and code not in good and worker not in self._seen:
                self._seen[worker] = now
                note_dead(self._store, worker)
        self.all = all(code not in (None, *good) for code in codes)
        if self.all:
            return  # the job has failed, which is told otherwise
        for worker, since in self._seen.items():
            late = now > since + self._grace or None not in codes
            if worker not in self.told and late:
                self.told.add(worker)
                self._tell(worker)

    def given_up(self, codes: Sequence[int | None], patience: float) -> list[int]:
        """Those that still run `patience` seconds after the others went on without them."""
        now = time.monotonic()
        for worker, code in enumerate(codes):
            if code is None and is_dead(self._store, worker):
                self._left.setdefault(worker, now)
        self.silent |= {worker for worker, since in self._left.items() if now > since + patience}
        return [worker for worker in self.silent if codes[worker] is None]

    def summary(self, codes: Sequence[int | None]) -> str:
        """Who died and when, and whom the others left behind: one that still runs."""
        seconds = {worker: when - self._began for worker, when in self._seen.items()}
        how = {worker: "was stopped" if worker in self.silent else "died" for worker in seconds}
        words = [f"{self._what} {w} {how[w]} after {s:.1f} s" for w, s in seconds.items()]
        left = [worker for worker, code in enumerate(codes) if code is None]
        words += [f"{self._what} {worker} did not answer and is stopped now" for worker in left]
        return "; ".join(words)

"""Signals that ask a run to save and end, as batch systems send them before time is up."""

from __future__ import annotations

import os
import signal
from types import FrameType

__all__ = ["SAVED", "SIGNALS", "StopRequest"]

SAVED = os.EX_TEMPFAIL  # the exit code of a run that saved and ended early: start it again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Notes the first SIGTERM or SIGUSR1; the same signal again ends the process at once.

    Another worker may get its signal an iteration earlier, so nobody acts on `number` alone: the
    guard makes all workers agree first.
    """

    def __init__(self) -> None:
        self.number = 0

    def listen(self) -> None:
        """From now on; in the main thread."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)

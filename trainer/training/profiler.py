"""A window of iterations recorded by torch.profiler, for chrome://tracing or Perfetto."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["Profiler"]


class Profiler:
    """Records iterations FIRST to LAST - 1 into DIRECTORY/trace_FIRST_LAST.json.

    An empty window records nothing.
    """

    def __init__(self, window: str, directory: Path) -> None:
        self._first, self._last = (int(n) for n in window.split(":")) if window else (-1, -1)
        self._directory = directory
        self._profile: profile | None = None
        self.say: Callable[[str], None] = print

    def before(self, iteration: int) -> None:
        """Call it before each iteration."""
        if iteration == self._first:
            kinds = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=kinds)
            self._profile.start()
        elif iteration >= self._last:
            self.close()

    def close(self) -> None:
        """Ends the window, if it is open, and writes the file."""
        if self._profile is None:
            return
        recorded, self._profile = self._profile, None
        recorded.stop()
        path = self._directory / f"trace_{self._first}_{self._last}.json"
        try:
            recorded.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:  # torch gives no errno
            self.say(f"{path} could not be written ({error})")

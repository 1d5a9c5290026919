"""A window of iterations recorded by torch.profiler, for chrome://tracing or Perfetto."""

from __future__ import annotations

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
        self._profile.stop()
        path = self._directory / f"trace_{self._first}_{self._last}.json"
        self._profile.export_chrome_trace(str(path))
        self._profile = None

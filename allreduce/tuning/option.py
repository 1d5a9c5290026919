"""What `tuning=` and ALLREDUCE_TUNING ask for, and whether it suits the ranks that have met."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from allreduce.errors import UsageError
from allreduce.tuning import LayoutTuning, Tuning
from allreduce.tuning.cost import Layout
from allreduce.tuning.file import read

__all__ = ["NO_REQUEST", "TuningOption", "TuningRequest", "resolve_tuning", "tuning_for_any_layout"]

TuningOption: TypeAlias = str | os.PathLike[str] | Tuning | None

_VARIABLE = "ALLREDUCE_TUNING"
_LANES, _RAILS, _SEGMENT_BYTES = 2, 0, 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRequest:
    """A tuning that was asked for, or why it cannot be had.

    A file must have the ranks' layout; a group's tuning that a part of the group takes need not.
    """

    tuning: Tuning | None = None
    file: str = ""
    failure: str = ""

    @property
    def digest(self) -> str:
        """Return what this rank tells the others, who must have the same."""
        return self.tuning.digest if self.tuning else ""

    def lanes(self, given: int | None, world_size: int) -> int:
        """Return the lanes for so many ranks."""
        if given is None and self.tuning:
            given = self.tuning.lanes(world_size)
        return _LANES if given is None else given

    def rails(self, given: int | None, layout: Layout) -> int:
        """Return the rails for a layout."""
        tuned = self._tuned(layout)
        if given is None and tuned:
            given = tuned.rails
        return _RAILS if given is None else given

    def segment_bytes(self, given: int | None, layout: Layout) -> int:
        """Return the segment size for a layout."""
        tuned = self._tuned(layout)
        if given is None and tuned:
            given = tuned.segment_bytes
        return _SEGMENT_BYTES if given is None else given

    def check_fit(self, layout: Layout) -> None:
        """Raise UsageError if a file was named that does not have this layout."""
        if self.tuning is None or not self.file or self.tuning.of(layout):
            return
        there = "; ".join(
            f"nodes = {list(t.nodes)}, local = {t.local}" for t in self.tuning.layouts
        )
        raise UsageError(
            f"tuning file {self.file}: no layout has nodes = {list(layout.nodes)}, "
            f"local = {layout.local}; there is {there or 'none'}. Run python -m allreduce.tune on "
            f"these ranks, or leave tuning ({_VARIABLE}) out"
        )

    def _tuned(self, layout: Layout) -> LayoutTuning | None:
        return self.tuning.of(layout) if self.tuning else None


NO_REQUEST = TuningRequest()


def resolve_tuning(option: TuningOption, environ: Mapping[str, str]) -> TuningRequest:
    """Read the file that is asked for, if one is; what is wrong with it is told to all ranks."""
    if isinstance(option, Tuning):
        return TuningRequest(tuning=option)
    file = os.fspath(option) if option is not None else environ.get(_VARIABLE, "").strip()
    if not file:
        return NO_REQUEST
    try:
        return TuningRequest(tuning=read(file), file=file)
    except UsageError as error:
        return TuningRequest(file=file, failure=str(error))


def tuning_for_any_layout(environ: Mapping[str, str]) -> Tuning | None:
    """Return the tuning of ALLREDUCE_TUNING for a group whose layout its file need not have: the
    job was tuned with other ranks. None without one, or with one that cannot be read.
    """
    return resolve_tuning(None, environ).tuning

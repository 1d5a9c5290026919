"""The errors of the library: each is also the builtin error that users expect.

All are RuntimeErrors as well, since that is what users of torch.distributed catch.
"""

from __future__ import annotations

__all__ = [
    "AbortedError",
    "CudaError",
    "Error",
    "IntegrityError",
    "MismatchError",
    "PeerError",
    "SystemCallError",
    "Timeout",
    "UsageError",
]


class Error(RuntimeError):
    """Base class of every error that the library raises on purpose."""


class UsageError(Error, ValueError):
    """An argument cannot work. The message names it and the remedy."""


class PeerError(ConnectionError, Error):
    """A peer died, left the group, or the connection to it broke."""

    def __init__(self, message: str, rank: int = -1) -> None:
        super().__init__(message)
        self.rank = rank


class Timeout(TimeoutError, Error):
    """A deadline passed. The message names the ranks that were waited for."""


class MismatchError(Error):
    """Ranks called different collectives, or one with different arguments."""


class IntegrityError(MismatchError):
    """What a rank sent arrived as something else: a checksum differs."""


class SystemCallError(OSError, Error):
    """The operating system refused a call; `errno` says why."""


class CudaError(Error):
    """The CUDA driver or runtime reported an error."""


class AbortedError(Error):
    """The group was aborted, has failed, or is closed: make a new one."""

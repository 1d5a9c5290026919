"""Errors that say in one sentence all there is to say, so that nobody needs their traceback."""

from __future__ import annotations

import errno

__all__ = ["ConfigError", "TrainerError", "sentence"]

# What a disk answers that is full, gone or read-only.
_OF_THE_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV),
}


class TrainerError(Exception):
    """Base class of the errors that the trainer raises on purpose: they name cause and remedy."""


class ConfigError(TrainerError, ValueError):
    """An option that cannot be; one line that names the option and the remedy."""


def sentence(error: BaseException) -> str | None:
    """What to show of an error in place of its traceback; None if it needs that."""
    from allreduce import Error  # here, so that --help needs no NumPy

    if isinstance(error, (TrainerError, Error)):
        return str(error)
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return f"{error.filename or 'the disk'}: {error.strerror}"
    return None

"""Room for batches under way, which decoding processes write into; needs no torch."""

from __future__ import annotations

import mmap
import os
import signal

import numpy as np

from allreduce.commands.parent_death import die_with_parent
from trainer.data.decoding import Failure, Pixels, Work

__all__ = ["Slots", "enter", "fill_slot"]


class Slots:
    """Memory for `count` batches of uint8 (rows, side, side, 3), shared with other processes.

    It has no name in the file system, so nothing is left of it, whoever is killed: processes find
    it by `address`, the path of this process's descriptor.
    """

    def __init__(self, count: int, rows: int, side: int) -> None:
        self.shape = (count, rows, side, side, 3)
        self._descriptor = os.memfd_create("trainer-batches", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, int(np.prod(self.shape)))
        self.address = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self._pixels = _map(self._descriptor, self.shape)

    def __getitem__(self, slot: int) -> Pixels:
        pixels: Pixels = self._pixels[slot]
        return pixels

    def close(self) -> None:
        """Closes the descriptor; the memory goes with the last array that shows it."""
        os.close(self._descriptor)


def _map(descriptor: int, shape: tuple[int, ...]) -> Pixels:
    return np.frombuffer(mmap.mmap(descriptor, 0), np.uint8).reshape(shape)


_entered: list[Pixels] = []  # the slots, in a decoding process


def enter(address: str, shape: tuple[int, ...], parent: int) -> None:
    """Begins a decoding process: it ends when `parent` does, however that comes about."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's business
    die_with_parent(parent)
    descriptor = os.open(address, os.O_RDWR | os.O_CLOEXEC)
    _entered.append(_map(descriptor, shape))
    os.close(descriptor)


def fill_slot(work: Work, slot: int, first: int, count: int) -> list[Failure]:
    """Makes `count` images in a decoding process, into rows of the slot from `first` on."""
    return work.fill(_entered[0][slot, first : first + count])

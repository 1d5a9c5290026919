"""The batches of one process, made ahead of the training step that wants them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trainer.data import DataError, Dataset
from trainer.data.decoding import DecodingDataset, Failure, Indices, Pixels, Split, Work
from trainer.data.pool import PIECE, DecodePool, FeedError, Pieces
from trainer.data.sampler import EpochSampler, evaluation_batches

if TYPE_CHECKING:
    from trainer.config.options import Config

__all__ = ["Feed", "FeedError", "open_feed"]

_WORKERS_MAX = 16  # by itself it starts no more processes than this
_WITHOUT_BACKWARD = 4  # times as many images fit into memory in a test
_TRIES = 100  # images that are looked at for one that can be read

Batch = tuple[Tensor, Tensor]


class Feed:
    """Batches of uint8 images (n, c, side, side) and int64 labels, in order; a context manager.

    A test batch has up to `test_batch` images (0: as many as in training).
    Where the data set decodes, `workers` processes or threads do that ahead; with 0 this process
    does, when the batch is asked for. One iterator is in use at a time: begin another when done.

    FeedError if a process dies or no batch comes for `timeout` seconds. DataError for an image that
    cannot be read, unless `skip_bad`: in training the next one that can takes its place, and the
    test goes without it. `bad` counts them by the words of the error.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: EpochSampler,
        *,
        workers: int = 0,
        timeout: float = 120.0,
        skip_bad: bool = False,
        pin: bool = False,
        test_batch: int = 0,
    ) -> None:
        self._dataset, self._sampler = dataset, sampler
        self._test_batch = test_batch or sampler.batch
        self._skip_bad, self._pin = skip_bad, pin
        self.bad: dict[str, int] = {}
        self._pool: DecodePool | None = None
        if isinstance(dataset, DecodingDataset) and workers:
            self._pool = DecodePool(
                dataset.pool,
                workers,
                rows=max(sampler.batch, self._test_batch),
                side=dataset.info.side,
                timeout=timeout,
                rank=sampler.rank,
            )

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def train(self, epoch: int, offset: int = 0) -> Iterator[Batch]:
        """The rest of `epoch` after the first `offset` images of its permutation."""
        parts, seed = self._sampler.epoch(epoch, offset), self._sampler.seed
        if isinstance(self._dataset, DecodingDataset):
            return self._decoded(self._dataset, "train", epoch, parts)
        dataset = self._dataset
        return (dataset.train_batch(part, seed=seed, epoch=epoch) for part in parts)

    def test(self) -> Iterator[Batch]:
        """This process's share of the test images; over all processes each comes once."""
        sampler, size = self._sampler, self._dataset.info.test_images
        parts = evaluation_batches(size, self._test_batch, sampler.rank, sampler.world_size)
        if isinstance(self._dataset, DecodingDataset):
            return self._decoded(self._dataset, "test", 0, parts)
        return map(self._dataset.test_batch, parts)

    def _decoded(
        self, dataset: DecodingDataset, split: Split, epoch: int, parts: Iterable[Indices]
    ) -> Iterator[Batch]:
        part = _Pass(
            dataset=dataset,
            split=split,
            epoch=epoch,
            seed=self._sampler.seed,
            rank=self._sampler.rank,
            bad=self.bad,
            skip_bad=self._skip_bad,
            pin=self._pin,
        )
        return part.ahead(iter(parts), self._pool) if self._pool else map(part.now, parts)


@contextlib.contextmanager
def open_feed(config: Config, dataset: Dataset, sampler: EpochSampler) -> Iterator[Feed]:
    """The feed that the options ask for; says at the end which images could not be read."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    share = min(_WORKERS_MAX, max(1, cores - 1))
    feed = Feed(
        dataset,
        sampler,
        workers=share if config.data_workers < 0 else config.data_workers,
        timeout=config.timeout,
        skip_bad=config.bad_images == "skip",
        test_batch=_WITHOUT_BACKWARD * config.batch,
    )
    with feed:
        yield feed
    for reason, times in feed.bad.items():
        print(f"trainer: rank {sampler.rank}: {reason}: skipped {times} times", file=sys.stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One pass over the images of a split in this process."""

    dataset: DecodingDataset
    split: Split
    epoch: int
    seed: int
    rank: int
    bad: dict[str, int]
    skip_bad: bool
    pin: bool

    def now(self, indices: Indices) -> Batch:
        """A batch, made by this process."""
        side = self.dataset.info.side
        pixels = np.empty((len(indices), side, side, 3), np.uint8)
        return self._finish(indices, pixels, self._plan(indices).fill(pixels))

    def ahead(self, parts: Iterator[Indices], pool: DecodePool) -> Iterator[Batch]:
        """All batches, each begun by the pool as soon as there is a slot for it."""
        under_way: deque[tuple[int, Indices, Pieces]] = deque()
        free = deque(range(pool.slots))
        try:
            while True:
                while free and (indices := next(parts, None)) is not None:
                    slot = free.popleft()
                    works = [
                        self._plan(indices[i : i + PIECE]) for i in range(0, len(indices), PIECE)
                    ]
                    under_way.append((slot, indices, pool.submit(slot, works, len(indices))))
                if not under_way:
                    return
                slot, indices, pieces = under_way[0]
                failures = pool.wait(pieces)
                batch = self._finish(indices, pool.pixels(slot, len(indices)), failures)
                under_way.popleft()
                free.append(slot)
                yield batch
        except GeneratorExit:  # the pass is given up: its slots may be wanted by the next
            pool.give_up([piece for _, _, pieces in under_way for piece in pieces])
            raise

    def _plan(self, indices: Indices) -> Work:
        return self.dataset.plan(self.split, indices, seed=self.seed, epoch=self.epoch)

    def _finish(self, indices: Indices, pixels: Pixels, failures: list[Failure]) -> Batch:
        """The batch as tensors of its own, with what the policy makes of bad images."""
        labels = self.dataset.labels(self.split, indices).copy()
        keep = np.ones(len(indices), bool)
        for failure in failures:
            self._note(failure)
            if self.split == "train":
                row = pixels[failure.row : failure.row + 1]
                labels[failure.row] = self._replace(int(indices[failure.row]), row)
            else:
                keep[failure.row] = False
        view = torch.from_numpy(pixels if keep.all() else pixels[keep]).permute(0, 3, 1, 2)
        images = torch.empty_like(view, pin_memory=self.pin)  # keeps channels last
        return images.copy_(view), torch.from_numpy(labels[keep])

    def _note(self, failure: Failure) -> None:
        if not self.skip_bad:
            raise DataError(
                f"rank {self.rank}: {failure.reason}: mend or remove it, or --bad-images skip"
            )
        self.bad[failure.reason] = self.bad.get(failure.reason, 0) + 1

    def _replace(self, index: int, row: Pixels) -> int:
        """Puts the next image that can be read into `row`, uint8 (1, side, side, 3); its class."""
        size, reason = self.dataset.info.train_images, ""
        for step in range(1, min(size, _TRIES)):
            other = np.array([(index + step) % size])
            failures = self._plan(other).fill(row)
            if not failures:
                return int(self.dataset.labels("train", other)[0])
            reason = failures[0].reason
        raise DataError(
            f"rank {self.rank}: no image can be read from number {index} on; the last one: {reason}"
        )

"""The feed: the same batches whoever decodes, and a named error when that fails."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_trees import write_tree

from trainer.data import IMAGENET, DataError, Source, open_dataset
from trainer.data.decoding import DecodingDataset, Failure
from trainer.data.feed import Feed, FeedError
from trainer.data.sampler import EpochSampler

CLASSES, TRAIN, TEST = ("ant", "bee"), 40, 5  # images per class


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def shared_tree(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("t"), classes=CLASSES, train=TRAIN, test=TEST)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One that a test may damage."""
    return write_tree(tmp_path / "photos", classes=CLASSES, train=TRAIN, test=TEST)


def dataset(tree: Path, pool: str = "processes") -> DecodingDataset:
    folder = open_dataset(Source(name="folder", folder=str(tree), side=16))
    assert isinstance(folder, DecodingDataset)
    folder.pool = pool
    return folder


def sampler(batch: int = 20, rank: int = 0, world_size: int = 1) -> EpochSampler:
    size = len(CLASSES) * TRAIN
    return EpochSampler(size=size, batch=batch, rank=rank, world_size=world_size, seed=7)


def joined(batches: Any) -> tuple[torch.Tensor, list[int]]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels).tolist()


def file_of(folder: DecodingDataset, index: int) -> Path:
    work = folder.plan("train", np.array([index]))
    return Path(work.folder, work.names[0].decode())


@pytest.mark.parametrize(("pool", "workers"), [("processes", 2), ("threads", 3)])
def test_batches_do_not_depend_on_who_decodes(shared_tree: Path, pool, workers) -> None:
    folder, order = dataset(shared_tree, pool), sampler()
    expected = [
        folder.train_batch(i, seed=7, epoch=epoch) for epoch in (0, 1) for i in order.epoch(epoch)
    ]
    with Feed(folder, order, workers=workers) as feed:
        made = [batch for epoch in (0, 1) for batch in feed.train(epoch)]
        tested, labels = joined(feed.test())
    assert len(made) == len(expected) == 8
    for (images, classes), (images_expected, classes_expected) in zip(made, expected, strict=True):
        assert torch.equal(images, images_expected)
        assert torch.equal(classes, classes_expected)
    assert torch.equal(tested, folder.test_batch(np.arange(10))[0])
    assert labels == [0] * TEST + [1] * TEST


def test_images_do_not_depend_on_how_many_processes_share_an_epoch(shared_tree: Path) -> None:
    folder = dataset(shared_tree)
    with Feed(folder, sampler(20)) as alone:
        expected, _ = joined(alone.train(3))
    shares = [list(Feed(folder, sampler(5, rank, 4)).train(3)) for rank in range(4)]
    together, _ = joined(batch for turn in zip(*shares, strict=True) for batch in turn)
    assert torch.equal(together, expected)


def test_an_epoch_begun_in_its_middle_reads_none_of_the_files_before(tree: Path) -> None:
    folder, order = dataset(tree, "threads"), sampler()
    expected, _ = joined(list(Feed(folder, order).train(2))[1:])
    for index in order.permutation(2)[:20]:
        file_of(folder, index).write_bytes(b"")
    with Feed(folder, order, workers=2) as feed:
        images, _ = joined(feed.train(2, offset=20))
    assert torch.equal(images, expected)


@dataclasses.dataclass(frozen=True)
class Slowly:
    """Fills a piece with one number, a moment late."""

    number: int
    seconds: float

    def fill(self, out: np.ndarray) -> list[Failure]:
        time.sleep(self.seconds)
        out[:] = self.number
        return []


class Epochs(DecodingDataset):
    """The images of an epoch have its number; image `late` of epoch 0 takes half a second."""

    pool = "threads"
    late = -1
    info = dataclasses.replace(IMAGENET, train_images=80, side=4)

    def plan(self, split, indices, *, seed=0, epoch=0) -> Slowly:
        return Slowly(epoch, 0.5 if epoch == 0 and self.late in indices else 0.0)

    def labels(self, split, indices) -> np.ndarray:
        return np.asarray(indices)


def test_a_pass_that_is_given_up_writes_into_no_batch_of_the_next() -> None:
    order, epochs = sampler(10), Epochs()
    epochs.late = int(order.permutation(0)[25])
    with Feed(epochs, order, workers=2) as feed:
        given_up = feed.train(0)
        next(given_up)  # the late one, two batches on, is under way
        given_up.close()
        batches = feed.train(1)
        next(batches)
        time.sleep(0.8)
        for images, _ in batches:
            assert set(images.flatten().tolist()) == {1}


def test_batches_stay_as_they_are_when_later_ones_come(shared_tree: Path) -> None:
    folder, order = dataset(shared_tree, "threads"), sampler(8)
    with Feed(folder, order, workers=1) as feed:
        batches = feed.train(0)
        first, _ = next(batches)
        copy = first.clone()
        assert len(list(batches)) == 9
    assert torch.equal(first, copy)


def test_a_data_set_without_decoding_is_fed_as_well() -> None:
    digits, order = open_dataset(Source()), dataclasses.replace(sampler(500), size=1536)
    with Feed(digits, order, workers=2) as feed:
        assert [len(labels) for _, labels in feed.train(0)] == [500] * 3
        assert sum(len(labels) for _, labels in feed.test()) == 261


def damage(tree: Path, *names: str) -> None:
    for name in names:
        file = tree / name
        file.write_bytes(file.read_bytes()[:-60])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_ends_the_run_with_its_name_the_rank_and_the_remedy(tree, workers) -> None:
    damage(tree, "train/bee/9.JPEG")
    with (
        Feed(dataset(tree, "threads"), sampler(20, 1, 2), workers=workers) as one,
        Feed(dataset(tree, "threads"), sampler(20, 0, 2), workers=workers) as other,
        pytest.raises(DataError, match=r"^rank [01]: .*bee/9.JPEG: .*trunc.*--bad-images skip$"),
    ):
        joined([*one.train(0), *other.train(0)])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_image_is_counted_and_the_next_takes_its_place(tree: Path, workers) -> None:
    damage(tree, *(f"train/ant/{i}.JPEG" for i in (8, 9)))
    folder, order = dataset(tree, "threads"), sampler()
    first_bad = next(i for i in range(TRAIN) if file_of(folder, i).name == "8.JPEG")
    with Feed(folder, order, workers=workers, skip_bad=True) as feed:
        images, labels = joined(feed.train(0))
    place = order.permutation(0).tolist().index(first_bad)
    expected, label = folder.train_batch(np.array([first_bad + 2]), seed=7, epoch=0)
    assert torch.equal(images[place], expected[0])
    assert labels[place] == label.item()
    assert sum(feed.bad.values()) == 2


def test_a_bad_test_image_is_counted_and_left_out(tree: Path) -> None:
    damage(tree, "val/bee/0.JPEG")
    with Feed(dataset(tree, "threads"), sampler(4), workers=2, skip_bad=True) as feed:
        images, labels = joined(feed.test())
    assert len(images) == 2 * TEST - 1
    assert labels == [0] * TEST + [1] * (TEST - 1)
    assert sum(feed.bad.values()) == 1


def test_if_no_image_can_be_read_the_run_ends_although_bad_ones_are_skipped(tree: Path) -> None:
    damage(tree, *(str(f.relative_to(tree)) for f in (tree / "train").rglob("*.JPEG")))
    with pytest.raises(DataError, match="no image can be read from number"):
        joined(Feed(dataset(tree), sampler(), skip_bad=True).train(0))


def test_a_decoding_process_that_is_killed_is_named(shared_tree: Path) -> None:
    with Feed(dataset(shared_tree), sampler(4), workers=2, timeout=60) as feed:
        next(feed.train(0))
        victim = next(iter(feed._pool._processes))
        os.kill(victim, signal.SIGKILL)
        batches_of_epochs = (batch for epoch in range(1, 1000) for batch in feed.train(epoch))
        with pytest.raises(FeedError, match=rf"^rank 0: .*\({victim}\) was killed by SIGKILL"):
            joined(batches_of_epochs)


def test_waiting_for_a_batch_has_a_deadline(tree: Path) -> None:
    fifo = tree / "train" / "ant" / "0.JPEG"  # a file that never ends, like a disk that is gone
    fifo.unlink()
    os.mkfifo(fifo)
    before = time.monotonic()
    with (
        Feed(dataset(tree), sampler(), workers=1, timeout=3) as feed,
        pytest.raises(FeedError, match=r"^rank 0: no batch of images within 3 s: .*--timeout"),
    ):
        joined(feed.train(0))
    assert time.monotonic() - before < 30


def test_decoding_processes_end_with_a_killed_training_process(shared_tree: Path) -> None:
    code = textwrap.dedent(
        f"""
        import sys, time
        from trainer.data import Source, open_dataset
        from trainer.data.feed import Feed
        from trainer.data.sampler import EpochSampler
        folder = open_dataset(Source(name="folder", folder={str(shared_tree)!r}, side=16))
        order = EpochSampler(size=80, batch=20, rank=0, world_size=1, seed=0)
        with Feed(folder, order, workers=2) as feed:
            batches = feed.train(0)
            next(batches)
            print(*feed._pool._processes, flush=True)
            time.sleep(100)
        """
    )
    script = shared_tree / "script.py"  # guarded: its processes import it again
    script.write_text(f"if __name__ == '__main__':\n{textwrap.indent(code, '    ')}")
    root = Path(__file__).resolve().parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ
    ) as job:
        assert job.stdout
        workers = [int(pid) for pid in job.stdout.readline().split()]
        assert workers
        job.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/maps").exists() and running(pid) for pid in workers):
        assert time.monotonic() < deadline, "decoding processes are left behind"
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False

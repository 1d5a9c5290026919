"""Checkpoint files: whole or refused by name, the right ones kept, a full disk survived."""

from __future__ import annotations

import dataclasses
import json
import random
import resource
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainer.checkpoint.file import CheckpointError, Checkpoints, Facts, read, read_facts, write
from trainer.checkpoint.states import RandomStates, States
from trainer.checkpoint.writer import BAD_LOSS, Saver
from trainer.config.options import Config


def facts(epoch: int = 0, offset: int = 0, **more) -> Facts:
    where = {"iteration": 3, "progress": epoch + 0.5, "workers": 2, "minibatch": 8, "config": {}}
    return Facts(epoch=epoch, offset=offset, **{**where, **more})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "a.pt", b"weights", facts(1, 64, test={"test_error": 0.5}))
    payload, found = read(tmp_path / "a.pt")
    assert payload == b"weights"
    assert (found.epoch, found.offset, found.test) == (1, 64, {"test_error": 0.5})
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_torch_loads_the_file_as_any_other(tmp_path: Path) -> None:
    states = States(common={"model": torch.nn.Linear(2, 3)}, workers={})
    write(tmp_path / "a.pt", states.packed({"model": torch.nn.Linear(2, 3).state_dict()}), facts())
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.nn.Linear(2, 3).load_state_dict(loaded["model"])


@pytest.mark.parametrize("where", [0, 500, -200, -8, -1])
def test_a_changed_byte_is_found_and_the_file_named(tmp_path: Path, where: int) -> None:
    path = tmp_path / "a.pt"
    write(path, bytes(1000), facts())
    data = bytearray(path.read_bytes())
    data[where] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=str(path)):
        read(path)


@pytest.mark.parametrize("size", [0, 10, 999, 1100])
def test_a_half_written_file_is_refused_without_reading_it(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.pt"
    write(path, bytes(1000), facts())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=str(path)):
        read_facts(path)


def test_the_newest_whole_one_is_found_and_the_others_are_named(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    paths = [kept.add(b"x", facts(0, offset)) for offset in (0, 8)]
    paths[1].write_bytes(b"half")
    refused: list[str] = []
    assert [path for path, _ in kept.usable(refused)] == paths[:1]
    assert len(refused) == 1
    assert str(paths[1]) in refused[0]


def test_last_two_best_and_every_nth_epoch_are_kept(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for epoch in range(8):
        kept.add(b"x", facts(epoch), best=epoch == 1, keep=3)
        kept.add(b"x", facts(epoch, 64), keep=3)
    names = [facts(*position).name for position in ((7, 64), (7, 0), (6, 0), (3, 0), (1, 0))]
    assert [path.name for path in kept.paths()] == names
    assert (kept.directory / "last.pt").resolve().name == names[0]
    assert (kept.directory / "best.pt").resolve().name == names[-1]


def test_epoch_10000_comes_after_epoch_9999(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    written = [kept.add(b"x", facts(epoch)) for epoch in (9998, 9999, 10000, 10001)]
    assert kept.paths() == [written[3], written[2]]
    assert [path for path, _ in kept.usable([])] == [written[3], written[2]]


def damage(path: Path) -> None:
    """Changes a byte of what was saved: only reading all of it tells."""
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def test_damaged_files_count_for_nothing_and_the_one_just_written_stays(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    good = kept.add(b"x", facts(8))
    for epoch in (9, 10):
        damage(Checkpoints(tmp_path).add(b"x", facts(epoch)))
    kept = Checkpoints(tmp_path)  # of a process that goes on from the whole one
    kept.went_on_from(good)
    newest = kept.add(b"x", facts(8, 64))
    assert {good, newest} <= set(kept.paths())
    more = [kept.add(b"x", facts(11, offset)) for offset in (0, 64, 128)]
    assert kept.paths() == [more[2], more[1], good]  # damaged ones that were passed are gone


def test_one_that_is_damaged_does_not_take_the_place_of_a_whole_one(tmp_path: Path) -> None:
    written = [Checkpoints(tmp_path).add(b"x", facts(epoch)) for epoch in (1, 2)]
    damage(written[1])
    newest = Checkpoints(tmp_path).add(b"x", facts(3))
    assert Checkpoints(tmp_path).paths() == [newest, written[0]]


def of_version_2(path: Path) -> str:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"hierCkp1", b"hierCkp2"))
    return "of format '2'"


def with_one_more_fact(path: Path) -> str:
    payload, found = read(path)
    text = json.dumps({**dataclasses.asdict(found), "colour": "red"}).encode()
    footer = struct.pack("<8sII", b"hierCkp1", len(text), zlib.crc32(text))
    path.write_bytes(payload + text + footer)
    return "says colour"


@pytest.mark.parametrize("newer", [of_version_2, with_one_more_fact])
def test_a_file_of_a_newer_release_is_refused_by_name_and_stays(tmp_path: Path, newer) -> None:
    kept = Checkpoints(tmp_path)
    before, path = kept.add(b"x", facts(1)), kept.add(b"x", facts(2))
    says, refused = newer(path), []
    assert [path for path, _ in Checkpoints(tmp_path).usable(refused)] == [before]
    assert refused == [
        f"{path}: {says}; it was written by a newer release, which can go on from it"
    ]
    Checkpoints(tmp_path).add(b"x", facts(1, 8))
    assert path.exists()


def test_an_old_file_that_cannot_be_removed_is_no_failure(tmp_path: Path, monkeypatch) -> None:
    kept = Checkpoints(tmp_path)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "not now", str(path))

    for epoch in (1, 2):
        kept.add(b"x", facts(epoch))
    monkeypatch.setattr(Path, "unlink", refuse)
    assert kept.add(b"x", facts(3)) in kept.paths()


def test_a_state_of_bad_loss_is_set_aside_and_the_one_before_is_the_last(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    good = kept.add(b"good", facts(0, 0))
    kept.add(b"bad", facts(0, 8))
    assert kept.set_aside(facts(0, 8), BAD_LOSS) == kept.directory / BAD_LOSS
    assert kept.paths() == [good]
    assert (kept.directory / "last.pt").resolve() == good


@pytest.fixture
def full_disk():
    """Files of this process may have 20,000 bytes: writing more fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def alone() -> SimpleNamespace:
    """A communicator of one rank, as far as saving needs it."""
    return SimpleNamespace(rank=0, allgather=lambda x: x, gather=lambda x, rows: x)


def test_a_full_disk_keeps_the_one_before_says_so_and_goes_on(tmp_path: Path, full_disk) -> None:
    said: list[str] = []
    layer = torch.nn.Linear(10, 10)
    states = States(common={"model": layer}, workers={})
    saver = Saver(Config(), alone(), states, Checkpoints(tmp_path), say=said.append)
    saver.save(facts(0))
    saver.close()
    (good,) = Checkpoints(tmp_path).paths()
    layer.weight.data = torch.zeros(100, 100)
    saver.save(facts(1))
    saver.save(facts(2))
    saver.close()
    assert Checkpoints(tmp_path).paths() == [good]
    read(good)
    assert len(said) == 2
    assert f"{good} stays the last one" in said[0]
    assert not list((tmp_path / "checkpoints").glob(".epoch*"))


def test_what_is_saved_is_the_state_at_the_call(tmp_path: Path) -> None:
    layer = torch.nn.Linear(300, 300)
    before = layer.weight.clone()
    states = States(common={"model": layer}, workers={})
    saver = Saver(Config(), alone(), states, Checkpoints(tmp_path))
    saver.save(facts())
    layer.weight.data.zero_()
    saver.close()
    (path,) = Checkpoints(tmp_path).paths()
    assert torch.equal(torch.load(path, weights_only=True)["model"]["weight"], before)


def test_never_saves_nothing(tmp_path: Path) -> None:
    saver = Saver(Config(save_every="never"), alone(), States(common={}, workers={}), None)
    saver.save(facts())
    assert not saver.due(1)


def test_random_generators_go_on_where_they_were() -> None:
    state = RandomStates([4, 5]).state_dict()
    drawn = (torch.rand(3), np.random.rand(3))
    RandomStates([5]).load_state_dict(state)
    assert torch.equal(drawn[0], torch.rand(3))
    np.testing.assert_array_equal(drawn[1], np.random.rand(3))


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_normal_numbers_that_come_in_pairs_go_on_where_they_were(before: int) -> None:
    def draw() -> list[float]:
        return [np.random.randn(), random.gauss(0, 1)]

    for _ in range(before):
        draw()
    state = RandomStates([0]).state_dict()
    wanted = [draw() for _ in range(3)]
    draw()
    RandomStates([0]).load_state_dict(state)
    assert [draw() for _ in range(3)] == wanted


def test_random_states_of_older_checkpoints_are_read() -> None:
    state = RandomStates([0]).state_dict()
    wanted = [np.random.rand(), random.random()]
    older = {
        name: tensor[:625] if "torch" not in name else tensor for name, tensor in state.items()
    }
    np.random.randn(), random.gauss(0, 1)
    RandomStates([0]).load_state_dict(older)
    assert [np.random.rand(), random.random()] == wanted


class Statistics:
    """Two workers' statistics, first and second of the process."""

    def __init__(self, first: int) -> None:
        self.tensors = {f"{worker}.mean": torch.full((2,), -1.0) for worker in (first, first + 1)}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.tensors

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.tensors = {name: state[name] for name in self.tensors}


def test_a_new_worker_gets_the_statistics_of_its_number_modulo_the_old_ones() -> None:
    saved = {"workers": {"statistics": {f"{w}.mean": torch.full((2,), float(w)) for w in range(3)}}}
    ours = Statistics(first=4)
    states = States(common={}, workers={"statistics": ours})
    states.restore(bytes(states.packed(saved)), workers_before=3)
    assert [tensor[0].item() for tensor in ours.tensors.values()] == [1.0, 2.0]

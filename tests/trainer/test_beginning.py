"""Which checkpoint a run begins with, and one-line refusals before any process is started."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from trainer.checkpoint.file import Checkpoints, Facts
from trainer.checkpoint.find import begin
from trainer.config.checks import ConfigError
from trainer.config.options import Config

NOW = Config(model="resnet18", batch=8, workers=2)


def saved(run: Path, epoch: int = 1, **changes) -> Path:
    config = dataclasses.asdict(dataclasses.replace(NOW, **changes))
    facts = Facts(
        epoch=epoch, offset=0, iteration=9, progress=float(epoch), workers=config["workers"],
        minibatch=8, config=config,
    )  # fmt: skip
    return Checkpoints(run).add(b"payload", facts)


def asked(run: Path, **changes) -> Config:
    return dataclasses.replace(NOW, out=str(run), **changes)


def test_a_new_directory_begins_anew(tmp_path: Path) -> None:
    assert begin(asked(tmp_path / "run")).candidates == ()


def test_auto_takes_the_newest_and_has_the_others_in_reserve(tmp_path: Path) -> None:
    old, new = saved(tmp_path, 1), saved(tmp_path, 2)
    assert begin(asked(tmp_path)).candidates == (new, old)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "metrics.jsonl").write_text("")
    for name in (".lock", ".config.toml.123", ".metrics.csv.9"):
        (tmp_path / name).write_text("half")
    assert begin(asked(tmp_path)).candidates == ()


@pytest.mark.parametrize("option", ["workers", "log_every", "nodes", "timeout", "max_iterations"])
def test_some_options_may_differ(tmp_path: Path, option: str) -> None:
    path = saved(tmp_path)
    value = getattr(NOW, option) + 1
    assert begin(asked(tmp_path, **{option: value})).candidates == (path,)


def test_a_checkpoint_or_a_run_can_be_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "old")
    for name in (path, tmp_path / "old"):
        assert begin(asked(tmp_path / "new", resume=str(name))).candidates == (path,)


def other_file(run: Path) -> None:
    (run / "thesis.tex").write_text("")


def only_half(run: Path) -> None:
    saved(run).write_bytes(b"half")


REFUSALS = [
    (saved, {"lr": 0.5}, "--lr 0.5: .* was written with 0.1; give that, or begin anew"),
    (saved, {"seed": 3}, "--seed 3: .* was written with 0"),
    (saved, {"batch": 16}, "--batch 16: .* was written with 8"),
    (saved, {"resume": "none"}, "--out .*: holds something already; name another directory"),
    (saved, {"resume": "strict", "workers": 3}, "--workers 3: .* is of 2 workers, and --resume st"),
    (other_file, {}, "--out .*: holds something, no checkpoint; name another directory"),
    (other_file, {"resume": "strict"}, "--resume strict: .* holds no whole checkpoint"),
    (only_half, {}, r"--out .*: holds no whole checkpoint \(.*epoch_0001.*cut off at 4 bytes"),
    (other_file, {"resume": "away.pt"}, "--out .*: already holds something; leave --resume away"),
]


@pytest.mark.parametrize(("before", "changes", "message"), REFUSALS, ids=[r[2] for r in REFUSALS])
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, before, changes, message) -> None:
    before(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        begin(asked(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.pt", "notes.txt", "."])
def test_a_path_that_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("no checkpoint at all, but more than a footer")
    config = asked(tmp_path / "new", resume=str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"give a checkpoint or a run$"):
        begin(config)


def test_threads_may_differ_unless_the_run_is_deterministic(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert begin(asked(tmp_path, threads=3)).candidates == (path,)
    saved(tmp_path, 2, deterministic=True)
    with pytest.raises(ConfigError, match="--threads 3"):
        begin(asked(tmp_path, threads=3, deterministic=True))

"""Presets and TOML files: what wins over what, and a line for each mistake."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from trainer.config.command_line import parse
from trainer.config.files import preset_names, to_toml
from trainer.config.options import Config, ConfigError

LAUNCHER = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def toml(folder: Path, text: str) -> str:
    path = folder / "my.toml"
    path.write_text(text)
    return str(path)


def recipe(config: Config) -> dict[str, object]:
    """A configuration without what differs from run to run."""
    fields = dataclasses.fields(config)
    return {f.name: getattr(config, f.name) for f in fields if f.metadata["kept"]}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_configuration(name: str) -> None:
    parse(["--preset", name, "--dry-run"], {})


def test_the_preset_digits_is_what_runs_without_options() -> None:
    assert recipe(parse(["--preset", "digits"], {})) == recipe(parse([], {}))


def test_the_command_line_wins_over_the_file_and_this_over_the_preset(tmp_path: Path) -> None:
    file = toml(tmp_path, "epochs = 7\nbatch = 16\n")
    config = parse(["--batch", "8", "--preset=digits", "--config", file], {})
    assert (config.epochs, config.batch, config.workers) == (7, 8, 4)


def test_keys_may_have_dashes_and_every_kind_of_value(tmp_path: Path) -> None:
    file = toml(tmp_path, 'bucket-bytes = "auto"\nmilestones = [1.5, 3]\nlr = 1\nmodel="resnet18"')
    config = parse(["--config", file], {})
    assert (config.bucket_bytes, config.milestones) == ("auto", (1.5, 3.0))
    assert (config.lr, config.model) == (1.0, "resnet18")


def test_the_configuration_that_a_run_leaves_gives_the_run_again(tmp_path: Path) -> None:
    config = parse(["--milestones=1.5,3", "--lr=0.15", "--workers=3", "--seed=4"], {})
    again = parse(["--config", toml(tmp_path, to_toml(config))], {})
    assert recipe(again) == recipe(config)


def test_a_run_directory_is_not_kept_for_the_next_run(tmp_path: Path) -> None:
    config = parse(["--out", 'a "b" \\ c'], {})
    again = parse(["--config", toml(tmp_path, to_toml(config))], {})
    assert again.out.startswith("runs/")


def test_a_file_of_another_number_of_workers_yields_to_the_launcher(tmp_path: Path) -> None:
    file = toml(tmp_path, "workers = 8\nnodes = 4\n")
    config = parse(["--config", file], LAUNCHER)
    assert (config.workers, config.nodes) == (3, 0)


FILES = [
    ("batchh = 3", "batchh: there is no such option; did you mean batch?"),
    ("zzz = 3", "zzz: there is no such option; --help lists the options, write them without --"),
    ('batch = "x"', "--batch: invalid int value: 'x'"),
    ("batch = 3.5", "--batch: invalid int value: '3.5'"),
    ("batch = true", "--batch: expected one argument"),
    ('model = "vgg"', "--model: invalid choice: 'vgg'"),
    ("milestones = [3, []]", "milestones: give a text, a number, true, false or a list of numbers"),
    ("[train]\nlr = 1", "train: there is no such option"),
    ("[optimizer]\nlr = 1", "optimizer: give a text, a number"),
    ("lr = 1\nlr = 2", "is no TOML .*write lines as batch = 32"),
    ("lr 1", "is no TOML .*write lines as batch = 32"),
]


@pytest.mark.parametrize(("text", "message"), FILES, ids=[text for text, _ in FILES])
def test_a_mistake_in_a_file_names_file_and_key_in_one_line(tmp_path, text, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(["--config", toml(tmp_path, text)], {})
    assert str(caught.value).startswith(f"--config {tmp_path}/my.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "digit"], "--preset digit: there is no such preset; did you mean digits?"),
        (["--preset", "zzz"], "--preset zzz: there is no such preset; choose one of .*digits"),
        (["--config", "no.toml"], r"--config no.toml: cannot be read \(No such file or directory"),
        (["--config", "/"], r"--config /: cannot be read \(Is a directory\)"),
    ],
)
def test_a_preset_or_file_that_is_not_there_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(argv, {})

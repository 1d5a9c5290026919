"""From the command line and the launcher's environment to the configuration of a run."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from trainer.config.checks import flag, refusal
from trainer.config.files import did_you_mean, preset_names, read_file, read_preset
from trainer.config.gpus import usable_gpus
from trainer.config.options import GROUPS, Config, ConfigError
from trainer.config.threads import thread_count

__all__ = ["default_directory", "parse"]

_RANKS_OF_A_NODE = 8


class _Parser(argparse.ArgumentParser):
    """argparse, but errors are one line and come as ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m trainer.run",
        usage="%(prog)s [options]",
        description="Train ResNet with large-minibatch SGD over our own hierarchical allreduce.",
        epilog="Under torchrun the same command is one worker of the job that torchrun describes.",
        allow_abbrev=False,
    )
    groups = {title: parser.add_argument_group(title) for title in ("recipe", *GROUPS)}
    names = ", ".join(preset_names())
    groups[GROUPS[-1]].add_argument(
        "--world", default=argparse.SUPPRESS, type=int, metavar="N",
        help="look at N workers, 8 to a node; by preset paper-256 if no data or recipe is named",
    )  # fmt: skip
    for name, metavar, text in (
        ("--preset", "NAME", f"begin with the options of a recipe: {names}"),
        ("--config", "FILE", "begin with the options in a TOML file, as a run's config.toml"),
    ):
        groups["recipe"].add_argument(name, default=argparse.SUPPRESS, help=text, metavar=metavar)
    for field in dataclasses.fields(Config):
        _add(groups[field.metadata["group"]], field)
    return parser


def _add(group: argparse._ArgumentGroup, field: dataclasses.Field[object]) -> None:
    settings = dict(field.metadata["argparse"])
    text = field.metadata["help"]
    if isinstance(field.default, bool):
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings.setdefault("type", type(field.default))
        if "choices" not in settings:
            settings.setdefault("metavar", {int: "N", float: "X"}.get(settings["type"], "TEXT"))
    if "(" not in text and field.default is not False and field.default not in ("", ()):
        text += f" (default: {field.default})"
    group.add_argument(flag(field.name), default=argparse.SUPPRESS, help=text, **settings)


def default_directory() -> str:
    """The run directory of a run that names none."""
    return f"runs/{time.strftime('%Y-%m-%d_%H-%M-%S')}"


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """The configuration that the command line asks for, with its defaults resolved.

    The command line wins over the file that --config names, and this over --preset. Where `environ`
    holds RANK, a launcher has started this process as one of a job: the number of processes is
    then WORLD_SIZE, and nodes are the real ones unless --nodes is given.
    ConfigError for anything wrong; `--help` prints and exits as argparse does.
    """
    parser = _parser()
    asked = _arguments(parser, argv)
    _take_world(asked)
    given: dict[str, Any] = {}
    if preset := asked.pop("preset", ""):
        given |= _from_file(parser, f"--preset {preset}", read_preset(preset))
    if path := asked.pop("config", ""):
        given |= _from_file(parser, called := f"--config {path}", read_file(Path(path), called))
    virtual = max((given | asked).get("workers_virtual", 1), 1)
    if "RANK" in environ and not asked.get("dry_run"):
        workers = _world_size(environ) * virtual
        if asked.get("workers", workers) != workers:
            each = f" with {virtual} workers each" if virtual > 1 else ""
            raise refusal(
                "workers", asked["workers"],
                f"the launcher started {workers // virtual}{each} (WORLD_SIZE); leave it out",
            )  # fmt: skip
        given |= {"workers": workers, "nodes": 0} | asked
    else:
        given |= asked
        gpus = 0 if given.get("dry_run") or given.get("device") == "cpu" else usable_gpus()
        on_gpus = gpus * given.get("machines", 1)  # the others are like this one
        default = virtual if virtual > 1 else on_gpus or Config().workers
        processes = max(given.setdefault("workers", default) // virtual, 1)
        if given.get("machines", 1) == 1 and not asked.get("nodes"):
            # The CPU's nodes are an example of several; GPUs of a machine are better one node.
            given["nodes"] = given.get("nodes") or (1 if gpus >= processes else 2)
            given["nodes"] = min(given["nodes"], processes)
        given.setdefault("out", default_directory())
    if given.get("deterministic") and not given.get("threads"):  # kept, for other machines
        given["threads"] = thread_count(0, _local_processes(environ, given["workers"] // virtual))
    return Config(**given)


def _take_world(asked: dict[str, Any]) -> None:
    """--world N: a dry run of N workers, 8 to a node; of the paper's recipe if none is named."""
    if "world" not in asked:
        return
    world = asked.pop("world")
    if not asked.get("dry_run"):
        raise refusal("world", world, "belongs to --dry-run; --workers starts so many workers")
    if asked.setdefault("workers", world) != world:
        raise refusal("world", world, f"is the same as --workers {asked['workers']}; give one")
    processes = world // max(asked.get("workers_virtual", 1), 1)
    asked.setdefault("nodes", max(1, -(-processes // _RANKS_OF_A_NODE)))
    if not asked.keys() & {"preset", "config", "data"}:
        asked["preset"] = "paper-256"


def _local_processes(environ: Mapping[str, str], processes: int) -> int:
    local = environ.get("LOCAL_WORLD_SIZE", "")
    return int(local) if "RANK" in environ and local.isdecimal() else processes


def _from_file(parser: _Parser, called: str, arguments: Sequence[str]) -> dict[str, Any]:
    try:
        return _arguments(parser, arguments)
    except ConfigError as error:
        raise ConfigError(f"{called}: {error}") from None


def _arguments(parser: _Parser, argv: Sequence[str]) -> dict[str, Any]:
    """What the arguments give, by name of the option; nothing for an option that is not there."""
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        word, *_ = unknown[0].split("=")
        if word in preset_names():
            remedy = f"did you mean --preset {word}?"
        else:
            remedy = did_you_mean(word, parser._option_string_actions, "--help lists the options")
        raise ConfigError(f"{unknown[0]}: there is no such option; {remedy}")
    return vars(namespace)


def _world_size(environ: Mapping[str, str]) -> int:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not environ.get(name):
            raise ConfigError(
                f"{name} is not set although RANK is: start the job by torchrun, set all of RANK, "
                "WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or unset RANK to start workers here"
            )
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not environ[name].isdecimal():
            raise ConfigError(f"{name}={environ[name]}: set it to a whole number")
    rank, world_size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    if rank >= world_size:
        raise ConfigError(f"RANK={rank}: ranks run from 0 to WORLD_SIZE - 1 = {world_size - 1}")
    return world_size

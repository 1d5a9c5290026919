"""Options of a run: one dataclass, the command line made from it, and every check of both.

Needs no torch, so `--help` and every refusal come at once, before any process is started.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from trainer.data import DATASETS

__all__ = ["ALGORITHMS", "Config", "ConfigError", "parse"]

ALGORITHMS = ("halving_doubling", "ring", "recursive_doubling", "bcube", "circulant", "auto")
_ALIASES = {"bucket": "ring"}  # the paper's word for the ring
_MODELS = ("resnet18", "resnet34", "resnet50", "resnet101")  # trainer.model.MODELS, without torch


class ConfigError(ValueError):
    """An option that cannot be; one line that names the option and the remedy."""


def _option(default: Any, group: str, text: str, **more: Any) -> Any:
    """A field of Config, with its group of `--help`, its help text and argparse's own settings."""
    return dataclasses.field(default=default, metadata={"group": group, "help": text, **more})


def _epochs(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give numbers of epochs, as 30,60,80") from None


def _bucket_bytes(text: str) -> int | Literal["auto"]:
    try:
        return "auto" if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give a number of bytes, or auto") from None


_WHAT, _RATE = "what to train", "optimizer and learning rate"
_WHO, _TALK, _OUT = "workers", "communication", "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every option of a run, checked; ConfigError for a value or a pair of values that cannot be.

    In the paper's words `batch` is n, `workers` is k and `minibatch` is kn.
    """

    model: str = _option("resnet50", _WHAT, "network", choices=_MODELS)
    data: str = _option("digits", _WHAT, "data set", choices=tuple(DATASETS))
    epochs: int = _option(5, _WHAT, "passes over the training images")
    batch: int = _option(32, _WHAT, "n, the images per worker and iteration")
    max_iterations: int = _option(0, _WHAT, "stop after so many iterations (0: run all epochs)")
    seed: int = _option(0, _WHAT, "seed of initial weights, shuffling and augmentation")

    lr: float = _option(0.1, _RATE, "learning rate per 256 images, scaled linearly to kn")
    warmup_epochs: float = _option(1.0, _RATE, "epochs of gradual warmup, per iteration")
    milestones: tuple[float, ...] = _option(
        (), _RATE, "epochs at which the rate is divided by 10, as 30,60,80 (default: at 2/3)",
        type=_epochs, metavar="E,E,...",
    )  # fmt: skip
    momentum: float = _option(0.9, _RATE, "Nesterov momentum")
    weight_decay: float = _option(1e-4, _RATE, "weight decay, not applied to batch normalisation")

    workers: int = _option(4, _WHO, "k, the processes to start; under torchrun it decides")
    nodes: int = _option(
        0,
        _WHO,
        "split this machine into so many nodes (default: 2; under a launcher the real ones)",
    )
    threads: int = _option(0, _WHO, "compute threads per worker (default: cores / workers)")

    algo: str = _option(
        "auto", _TALK, "allreduce between nodes; bucket is another name of ring",
        choices=(*ALGORITHMS, *_ALIASES),
    )  # fmt: skip
    bucket_bytes: int | Literal["auto"] = _option(
        4 << 20, _TALK,
        "bytes of gradients reduced together, 0 for one allreduce per tensor, or auto",
        type=_bucket_bytes, metavar="N",
    )  # fmt: skip
    timeout: float = _option(
        120.0, _TALK, "seconds until a worker that does not answer is given up"
    )

    out: str = _option("", _OUT, "run directory (default: runs/<date and time>)", metavar="DIR")
    log_every: int = _option(4, _OUT, "iterations per line of metrics")

    def __post_init__(self) -> None:
        object.__setattr__(self, "algo", _ALIASES.get(self.algo, self.algo))
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for field in dataclasses.fields(self):
            choices = field.metadata.get("choices")
            value = getattr(self, field.name)
            if choices and value not in choices:
                raise _refusal(field.name, value, f"choose one of {', '.join(choices)}")
        self._check_ranges()
        self._check_minibatch()

    @property
    def minibatch(self) -> int:
        """The total minibatch kn, in images."""
        return self.batch * self.workers

    def to_argv(self) -> list[str]:
        """Command-line arguments that `parse` turns into this configuration again."""
        argv = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                argv.append(f"{_flag(field.name)}={text}")
        return argv

    def _check_ranges(self) -> None:
        at_least = {"epochs": 1, "max_iterations": 0, "seed": 0, "workers": 1, "nodes": 0}
        at_least |= {"threads": 0, "log_every": 1}
        if self.bucket_bytes != "auto":
            at_least["bucket_bytes"] = 0
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise _refusal(name, getattr(self, name), f"give a whole number from {least} up")
        if self.batch < 2:  # at 1x1 pixel a batch of one has no variance
            raise _refusal("batch", self.batch, "batch normalisation needs at least 2 images")
        for name in ("lr", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise _refusal(name, getattr(self, name), "give a number above 0")
        if not 0 <= self.momentum < 1:
            raise _refusal("momentum", self.momentum, "give a number from 0 to below 1")
        if not 0 <= self.weight_decay < float("inf"):
            raise _refusal("weight_decay", self.weight_decay, "give a number from 0 up")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise _refusal("warmup_epochs", self.warmup_epochs, f"give 0 to --epochs {self.epochs}")
        epochs = list(self.milestones)
        if epochs != sorted(set(epochs)) or not all(0 < e < float("inf") for e in epochs):
            text = ",".join(f"{e:g}" for e in epochs)
            raise _refusal("milestones", text, "give increasing numbers of epochs above 0")

    def _check_minibatch(self) -> None:
        images = DATASETS[self.data].train_images
        if self.minibatch > images:
            raise ConfigError(
                f"--batch {self.batch} x --workers {self.workers} = {self.minibatch} images, but "
                f"--data {self.data} has {images} to train on: choose a smaller batch or "
                "fewer workers"
            )
        if self.nodes > self.workers:
            raise _refusal(
                "nodes", self.nodes, f"at most --workers {self.workers}, one worker to each node"
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refusal(name: str, value: Any, remedy: str) -> ConfigError:
    return ConfigError(f"{_flag(name)} {value}: {remedy}")


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
    groups = {
        title: parser.add_argument_group(title) for title in (_WHAT, _RATE, _WHO, _TALK, _OUT)
    }
    for field in dataclasses.fields(Config):
        more = dict(field.metadata)
        text, group = more.pop("help"), groups[more.pop("group")]
        more.setdefault("type", type(field.default))
        if "choices" not in more:
            more.setdefault("metavar", {int: "N", float: "X"}.get(more["type"], "TEXT"))
        if "(" not in text and field.default not in ("", ()):
            text += f" (default: {field.default})"
        group.add_argument(_flag(field.name), default=argparse.SUPPRESS, help=text, **more)
    return parser


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """The configuration that the command line asks for, with its defaults resolved.

    Where `environ` holds RANK, a launcher has started this process as one worker of a job: the
    number of workers is then WORLD_SIZE, and nodes are the real ones unless --nodes is given.
    ConfigError for anything wrong; `--help` prints and exits as argparse does.
    """
    parser = _parser()
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise ConfigError(_unknown(unknown[0], parser._option_string_actions))
    given = vars(namespace)
    if "RANK" in environ:
        world_size = _world_size(environ)
        if given.setdefault("workers", world_size) != world_size:
            raise _refusal(
                "workers", given["workers"],
                f"the launcher started {world_size} (WORLD_SIZE); leave the option out",
            )  # fmt: skip
    else:
        workers = given.get("workers", 4)
        given.setdefault("nodes", min(2, max(workers, 1)))
        if given["nodes"] == 0:
            raise _refusal("nodes", 0, f"give 1 to --workers {workers}")
        given.setdefault("out", str(Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")))
    return Config(**given)


def _unknown(argument: str, flags: Iterable[str]) -> str:
    near = difflib.get_close_matches(argument.split("=")[0], list(flags), n=1)
    remedy = f"did you mean {near[0]}?" if near else "--help lists the options"
    return f"{argument}: there is no such option; {remedy}"


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

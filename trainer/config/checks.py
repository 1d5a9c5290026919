"""What the values of options must be: of one alone, and of several together."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.gpus import usable_gpus
from trainer.data import DATASETS, DataError, DatasetInfo, describe
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.config.options import Config

_PROCESSES, _PROCESSES_OF_A_CORE = 64, 4  # more than these on a machine are a mistake

__all__ = [
    "TOGETHER",
    "ConfigError",
    "Remedy",
    "data_is_there",
    "flag",
    "gpus_are_there",
    "machine_holds",
    "no_launcher_but_ours",
    "refusal",
    "weights_are_there",
]

# Looks at the value of one option: None, or what to give instead of it.
Remedy = Callable[[Any], str | None]


def flag(name: str) -> str:
    """The command-line option of a field of Config."""
    return "--" + name.replace("_", "-")


def text(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, tuple):
        return ",".join(map(text, value))
    if isinstance(value, str):
        return value
    return f"{value:g}" if value == float(f"{value:g}") else repr(value)


def refusal(name: str, value: Any, remedy: str) -> ConfigError:
    """The error for an option that has a wrong value."""
    shown = text(value) if isinstance(value, tuple) else value
    return ConfigError(f"{flag(name)} {shown}".rstrip() + f": {remedy}")


def at_least(least: int) -> Remedy:
    """Whole numbers from `least` up."""
    return lambda value: None if value >= least else f"give a whole number from {least} up"


def above_zero(value: float) -> str | None:
    """Finite numbers above 0."""
    return None if 0 < value < float("inf") else "give a number above 0"


def zero_or_more(value: float) -> str | None:
    """Finite numbers from 0 up."""
    return None if 0 <= value < float("inf") else "give a number from 0 up"


def below_one(value: float) -> str | None:
    """Numbers in [0, 1)."""
    return None if 0 <= value < 1 else "give a number from 0 to below 1"


def batch(value: int) -> str | None:
    """n: batch normalisation needs a variance, also at 1x1 pixel."""
    return None if value >= 2 else "batch normalisation needs at least 2 images"


def rising_epochs(epochs: tuple[float, ...]) -> str | None:
    """Increasing numbers of epochs."""
    rising = list(epochs) == sorted(set(epochs)) and all(0 < e < float("inf") for e in epochs)
    return None if rising else "give increasing numbers of epochs above 0"


def bucket_bytes(value: int | str) -> str | None:
    """A number of bytes, or "auto"."""
    return None if value == "auto" else at_least(0)(value)


def save_every(value: int | str) -> str | None:
    """A number of iterations, "epoch" or "never"."""
    return None if value in ("epoch", "never") else at_least(1)(value)


def given(value: str) -> str | None:
    """Any text but none."""
    return None if value else "give a value"


def loggers(names: tuple[str, ...]) -> str | None:
    """Packages that take metrics, installed."""
    if not set(names) <= {"tensorboard", "wandb"}:
        return "choose from tensorboard, wandb"
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return f"pip install 'hier-allreduce[{missing[0]}]' first" if missing else None


def window(value: str) -> str | None:
    """FIRST:LAST, whole numbers, FIRST below LAST; or nothing."""
    first, _, last = value.partition(":")
    right = first.isdecimal() and last.isdecimal() and int(first) < int(last)
    return None if right or not value else "give iterations FIRST:LAST, as 10:15"


def weights_are_there(config: Config) -> None:
    """Looks for the file of --weights; ConfigError without it."""
    if config.weights and not Path(config.weights).is_file():
        raise refusal("weights", config.weights, "there is no such file; give a state dict (.pth)")


def gpus_are_there(config: Config, local: int | None) -> None:
    """Refuses what the GPUs of this machine cannot give, before they are asked; ConfigError.

    local: processes that will run here; None where another launcher has started this one, which may
    see fewer GPUs than there are.
    """
    if config.device == "cpu" and config.precision != "fp16":
        return
    gpus = 0 if config.device == "cpu" else usable_gpus()
    if config.device == "cuda" and gpus == 0:
        raise refusal("device", "cuda", "torch finds no GPU here; leave it out, or give cpu")
    if config.device == "cuda" and local is not None and gpus < local:
        raise refusal(
            "device", "cuda",
            f"{local} processes on this machine have {gpus} GPU{'s' * (gpus > 1)} between them and "
            "need one each; add --workers-virtual, for fewer processes, or give cpu",
        )  # fmt: skip
    on_cpu = gpus < (local or 1)
    if config.cuda_graphs and on_cpu:
        raise refusal("cuda_graphs", "", "there is no GPU here; leave it out")
    if config.cuda_graphs and config.processes > 1:
        raise refusal("cuda_graphs", "", "is for jobs of one process so far; leave it out")
    if config.precision == "fp16" and on_cpu:
        raise refusal(
            "precision", "fp16",
            "a CPU has to emulate it, some 20 times slower than f32; give f32 or bf16, or a GPU",
        )  # fmt: skip


def address(value: str) -> str | None:
    """HOST:PORT, or nothing."""
    host, _, port = value.rpartition(":")
    right = host and port.isdecimal() and 0 < int(port) < 65536
    return None if right or not value else "give HOST:PORT, as node1:29500"


def _warmup_fits(config: Config) -> None:
    if config.warmup != "none" and config.warmup_epochs > config.epochs:
        raise refusal("warmup_epochs", config.warmup_epochs, f"give 0 to --epochs {config.epochs}")


def data_is_there(config: Config) -> DatasetInfo:
    """Looks at the data, before any worker is started; ConfigError if they cannot be trained on."""
    try:
        info = describe(config.source)
    except DataError as error:
        raise ConfigError(str(error)) from None
    _minibatch_fits_in(config, info.train_images)
    return info


def _cosine_comes_after_warmup(config: Config) -> None:
    warmup = 0 if config.warmup == "none" else config.warmup_epochs
    if config.schedule == "cosine" and warmup >= config.epochs:
        raise refusal("warmup_epochs", warmup, "leave epochs for --schedule cosine to fall in")


def _graphs_fit(config: Config) -> None:
    if not config.cuda_graphs:
        return
    if config.device == "cpu":
        raise refusal("cuda_graphs", "", "needs a GPU, not --device cpu; leave it out")
    if config.compile:
        raise refusal("cuda_graphs", "", "goes not with --compile; leave one out")
    if config.workers_virtual > 1 and not config.ghost_bn:
        raise refusal("cuda_graphs", "", "goes with virtual workers only by --ghost-bn")
    if config.processes > 1 and config.device == "cuda" and not config.dry_run:
        raise refusal("cuda_graphs", "", "is for jobs of one process so far; leave it out")


def _deterministic_measures_nothing(config: Config) -> None:
    if config.deterministic and config.bucket_bytes == "auto":
        raise refusal("bucket_bytes", "auto", "goes by times; with --deterministic give a number")


def _lars_has_one_form(config: Config) -> None:
    if config.optimizer == "lars" and config.sgd_form != "reference":
        raise refusal("sgd_form", config.sgd_form, "--optimizer lars has the reference form alone")


def _minibatch_fits(config: Config) -> None:
    _minibatch_fits_in(config, DATASETS[config.data].train_images)


def _minibatch_fits_in(config: Config, images: int) -> None:
    if config.minibatch > images:
        raise ConfigError(
            f"--batch {config.batch} x --workers {config.workers} = {config.minibatch} images, "
            f"but --data {config.data} has {images} to train on: choose a smaller batch or "
            "fewer workers"
        )


def _each_node_has_a_process(config: Config) -> None:
    if config.nodes > config.processes:
        raise refusal(
            "nodes", config.nodes, f"at most {config.processes}, one process to each node"
        )


def _processes_are_alike(config: Config) -> None:
    if config.workers % config.workers_virtual:
        raise refusal(
            "workers", config.workers,
            f"give a multiple of --workers-virtual {config.workers_virtual}",
        )  # fmt: skip


def _machines_fit(config: Config) -> None:
    if config.machine >= config.machines:
        raise refusal("machine", config.machine, f"give 0 to {config.machines - 1}")
    if config.processes % config.machines:
        raise refusal(
            "machines", config.machines, f"give a divisor of the {config.processes} processes"
        )
    if config.machines > 1 and not config.master:
        raise refusal("machines", config.machines, "add --master HOST:PORT, of machine 0")


def _elastic_is_on_one_machine(config: Config) -> None:
    if config.elastic and config.machines > 1:
        raise refusal("elastic", "", "is for one machine so far; leave it out, or --machines")


def no_launcher_but_ours(config: Config, environ: Mapping[str, str]) -> None:
    """Refuses --elastic where another launcher starts the workers; ConfigError."""
    if config.elastic and "RANK" in environ and "TRAINER_LAUNCHER" not in environ:
        raise refusal(
            "elastic", "",
            "another launcher has started this process, and launchers end all workers when one "
            "dies; leave it out, or let the trainer start the workers (--workers)",
        )  # fmt: skip


def machine_holds(config: Config) -> None:
    """Refuses to start far more processes here than there are cores; ConfigError."""
    processes, cores = config.processes // config.machines, len(os.sched_getaffinity(0))
    if processes > max(_PROCESSES, _PROCESSES_OF_A_CORE * cores):
        raise refusal(
            "workers", config.workers,
            f"would start {processes} processes on this machine of {cores} cores; give --machines, "
            "a launcher or --workers-virtual, or look at the job by --dry-run",
        )  # fmt: skip


# Called with a configuration whose values are right one by one; ConfigError if they clash.
TOGETHER: tuple[Callable[[Config], None], ...] = (
    _warmup_fits,
    _machines_fit,
    _elastic_is_on_one_machine,
    _cosine_comes_after_warmup,
    _lars_has_one_form,
    _graphs_fit,
    _deterministic_measures_nothing,
    _minibatch_fits,
    _processes_are_alike,
    _each_node_has_a_process,
)

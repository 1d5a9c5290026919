"""Every option of a run: one field of one dataclass, with its group, help text and check.

Needs no torch, so `--help` and every refusal come at once, before any process is started.
A new option is a field in its group; checks against others are functions of checks.TOGETHER.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from trainer.config import checks
from trainer.config.checks import ConfigError
from trainer.data import DATASETS, Source

__all__ = ["ALGORITHMS", "ALIASES", "GROUPS", "Config", "ConfigError"]

# The core's table and its aliases, without the core, which needs NumPy: a test compares them.
ALGORITHMS = (
    *("auto", "recursive_doubling", "halving_doubling", "circulant", "bcube", "ring", "torus"),
    *("direct", "binomial"),
)
ALIASES = {"bucket": "ring"}
_MODELS = (
    "resnet8",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
)  # trainer.model.resnet.MODELS, without torch

_WHAT, _DATA = "what to train", "data"
_RATE, _SPEED = "optimizer and learning rate", "precision and speed"
_WHO, _TALK, _KEEP, _OUT = "workers", "communication", "checkpoints", "output"
_DRY = "dry run"
GROUPS = (_WHAT, _DATA, _RATE, _SPEED, _WHO, _TALK, _KEEP, _OUT, _DRY)  # as --help shows them


def _option(
    default: Any,
    group: str,
    text: str,
    check: checks.Remedy | None = None,
    *,
    kept: bool = True,
    resume: Literal["fixed", "free", "bits"] = "fixed",
    **more: Any,
) -> Any:
    """A field of Config: its group of `--help`, its help text, its check, argparse's settings.

    kept: written to a run's config.toml, since it says what is trained and not where.
    resume: whether a run that goes on from a checkpoint may have another value. free: the value
    changes neither the network nor the schedule in epochs, or, as the number of workers, in a way
    that the linear scaling rule deals with. bits: free unless the run is deterministic.
    """
    metadata: dict[str, Any] = {"group": group, "help": text, "check": check, "argparse": more}
    metadata |= {"kept": kept, "resume": resume}
    return dataclasses.field(default=default, metadata=metadata)


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


def _save_every(text: str) -> int | str:
    try:
        return text if text in ("epoch", "never") else int(text)
    except ValueError:
        message = f"{text}: give a number of iterations, epoch or never"
        raise argparse.ArgumentTypeError(message) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every option of a run, checked; ConfigError for a value or a pair of values that cannot be.

    In the paper's words `batch` is n, `workers` is k and `minibatch` is kn.
    """

    # what to train
    model: str = _option("resnet50", _WHAT, "network", choices=_MODELS)
    epochs: int = _option(5, _WHAT, "passes over the training images", checks.at_least(1))
    batch: int = _option(32, _WHAT, "n, the images per worker and iteration", checks.batch)
    max_iterations: int = _option(
        0,
        _WHAT,
        "stop after so many iterations (0: run all epochs)",
        checks.at_least(0),
        resume="free",
    )
    seed: int = _option(
        0, _WHAT, "seed of initial weights, shuffling and augmentation", checks.at_least(0)
    )
    gamma: int = _option(
        0, _WHAT, "initial gamma of the last batch normalisation of each residual block",
        choices=(0, 1),
    )  # fmt: skip
    weights: str = _option(
        "", _WHAT, "begin with a state dict of these names, as torchvision's (default: random "
        "weights)", metavar="FILE", resume="free",
    )  # fmt: skip

    # data
    data: str = _option("digits", _DATA, "data set", choices=tuple(DATASETS))
    data_dir: str = _option(
        "",
        _DATA,
        "its folder, or packed file (default: its usual place)",
        metavar="DIR",
        resume="free",
    )
    side: int = _option(
        0, _DATA, "pixels per side that the network sees (default: the data set's own)",
        checks.at_least(0),
    )  # fmt: skip
    data_workers: int = _option(
        -1, _DATA, "processes per worker that decode images (0: none; -1: a fair share of the "
        "cores, at most 16)", checks.at_least(-1), resume="free",
    )  # fmt: skip
    bad_images: str = _option(
        "fail", _DATA, "for images that cannot be read: end the run, or take others and count them",
        choices=("fail", "skip"),
    )  # fmt: skip
    bn_eval: str = _option(
        "rank0", _DATA, "batch normalisation statistics of the test: of rank 0, or of all pooled",
        choices=("rank0", "mean"), resume="free",
    )  # fmt: skip

    # optimizer and learning rate
    lr: float = _option(0.1, _RATE, "learning rate per 256 images", checks.above_zero)
    scaling: str = _option(
        "linear", _RATE, "how the learning rate follows the minibatch kn; fixed: not",
        choices=("linear", "sqrt", "fixed"),
    )  # fmt: skip
    warmup: str = _option(
        "gradual", _RATE, "climb by equal amounts each iteration, stay low and jump, or neither",
        choices=("gradual", "constant", "none"),
    )  # fmt: skip
    warmup_epochs: float = _option(1.0, _RATE, "epochs that warmup takes", checks.zero_or_more)
    warmup_start: float = _option(
        0.0, _RATE, "rate that warmup starts at (default: --lr, or for small minibatches the rate "
        "of one worker alone)", checks.zero_or_more,
    )  # fmt: skip
    schedule: str = _option(
        "step", _RATE, "after warmup: divide by 10 at milestones, or fall as half a cosine wave",
        choices=("step", "cosine"),
    )  # fmt: skip
    milestones: tuple[float, ...] = _option(
        (), _RATE, "epochs at which step divides the rate, as 30,60,80 (default: at 2/3)",
        checks.rising_epochs, type=_epochs, metavar="E,E,...",
    )  # fmt: skip
    optimizer: str = _option(
        "sgd", _RATE, "SGD, or LARS with rates per layer", choices=("sgd", "lars")
    )
    momentum: float = _option(0.9, _RATE, "Nesterov momentum", checks.below_one)
    sgd_form: Literal["reference", "absorbed"] = _option(
        "reference", _RATE, "SGD by equation (9), or by (10) with momentum correction",
        choices=("reference", "absorbed"),
    )  # fmt: skip
    lars_trust: float = _option(0.001, _RATE, "trust coefficient of LARS", checks.above_zero)
    weight_decay: float = _option(
        1e-4, _RATE, "weight decay, not applied to batch normalisation", checks.zero_or_more
    )
    label_smoothing: float = _option(
        0.0, _RATE, "share of the target that goes to all classes alike", checks.below_one
    )
    ema: float = _option(
        0.0, _RATE, "decay per iteration of an average of the weights, which is tested as well, as "
        "0.9999 (0: no average)", checks.below_one,
    )  # fmt: skip

    # precision and speed
    device: str = _option(
        "auto", _SPEED, "where to compute; auto: on GPUs, if each process here can have its own",
        choices=("auto", "cpu", "cuda"), resume="bits",
    )  # fmt: skip
    precision: str = _option(
        "auto", _SPEED, "f32, or autocast with weights in f32; auto: bf16 on a GPU, else f32",
        choices=("auto", "f32", "bf16", "fp16"),
    )  # fmt: skip
    channels_last: str = _option(
        "auto", _SPEED, "keep images and weights in NHWC order; auto: on a GPU (default: auto)",
        choices=("auto", "on", "off"), nargs="?", const="on", resume="bits",
    )  # fmt: skip
    compile: bool = _option(False, _SPEED, "compile the network with torch.compile", resume="bits")
    cuda_graphs: bool = _option(
        False,
        _SPEED,
        "replay forward and backward pass as CUDA graphs, on a GPU alone",
        resume="bits",
    )
    deterministic: bool = _option(
        False, _SPEED, "the same bits in each run: kernels of fixed order, a kept number of "
        "threads, and halving_doubling for --algo auto",
    )  # fmt: skip

    # workers
    workers: int = _option(
        4, _WHO, "k, the workers of the job; under torchrun its processes decide (default: one for "
        "each GPU, else 4)",
        checks.at_least(1), resume="free",
    )  # fmt: skip
    workers_virtual: int = _option(
        1, _WHO, "workers that each process runs in turn, with their own batch normalisation "
        "statistics; alone it means one process", checks.at_least(1), resume="free",
    )  # fmt: skip
    ghost_bn: bool = _option(
        False, _WHO, "run virtual workers as one batch: faster for small networks, and equal but "
        "for the last bits", resume="bits",
    )  # fmt: skip
    nodes: int = _option(
        0, _WHO, "split this machine into so many nodes (default: 2, or 1 where each process has a "
        "GPU; under a launcher the real ones)", checks.at_least(0), resume="free",
    )  # fmt: skip
    machines: int = _option(
        1, _WHO, "machines of the job; the same command runs on each, but for --machine",
        checks.at_least(1), resume="free",
    )  # fmt: skip
    machine: int = _option(
        0, _WHO, "which of them this is, from 0", checks.at_least(0), resume="free"
    )
    master: str = _option(
        "", _WHO, "a name of machine 0 and a free port there, if there are several",
        checks.address, metavar="HOST:PORT", resume="free",
    )  # fmt: skip
    elastic: bool = _option(
        False, _WHO, "if a worker dies, the others go on without it (on one machine)",
        resume="free",
    )  # fmt: skip
    threads: int = _option(
        0,
        _WHO,
        "compute threads per process (default: cores / processes)",
        checks.at_least(0),
        resume="bits",
    )

    # communication
    algo: str = _option(
        "auto", _TALK, "allreduce between nodes; bucket is another name of ring",
        choices=(*ALGORITHMS, *ALIASES), resume="bits",
    )  # fmt: skip
    bucket_bytes: int | Literal["auto"] = _option(
        4 << 20, _TALK,
        "bytes of gradients reduced together, 0 for one allreduce per tensor, or auto",
        checks.bucket_bytes, type=_bucket_bytes, metavar="N", resume="bits",
    )  # fmt: skip
    wire_dtype: str = _option(
        "f32", _TALK, "what gradients are sent and added as; bf16 and fp16 are half the bytes",
        choices=("f32", "bf16", "fp16"),
    )  # fmt: skip
    timeout: float = _option(
        120.0,
        _TALK,
        "seconds until a worker that does not answer is given up",
        checks.above_zero,
        resume="free",
    )

    check_replicas: int = _option(
        0, _TALK, "compare parameters and momentum of all processes every N iterations, by a hash; "
        "one that differs ends the run (0: never)", checks.at_least(0), resume="free",
    )  # fmt: skip

    # checkpoints
    resume: str = _option(
        "auto", _KEEP, "auto: go on from the newest whole checkpoint in --out, if there is one; "
        "strict: only with as many workers; none: begin anew; or a checkpoint or run to begin with",
        checks.given, metavar="auto|strict|none|PATH", resume="free",
    )  # fmt: skip
    save_every: int | Literal["epoch", "never"] = _option(
        "epoch", _KEEP, "iterations between checkpoints, besides those at the begin and after each "
        "epoch (epoch: only these)", checks.save_every, type=_save_every, metavar="N|epoch|never",
        resume="free",
    )  # fmt: skip
    keep: int = _option(
        0, _KEEP, "keep the checkpoint after every N-th epoch (always kept: the newest two, and "
        "the best)", checks.at_least(0), resume="free",
    )  # fmt: skip
    on_bad_loss: str = _option(
        "stop", _KEEP, "what to do if a loss is not finite or exploded: stop, or skip the update",
        choices=("stop", "skip"), resume="free",
    )  # fmt: skip
    max_loss: float = _option(
        0.0, _KEEP, "a worker's loss above this has exploded (default: 20 ln(classes))",
        checks.zero_or_more, resume="free",
    )  # fmt: skip

    # output
    out: str = _option(
        "",
        _OUT,
        "run directory (default: runs/<date and time>)",
        kept=False,
        metavar="DIR",
        resume="free",
    )
    log_every: int = _option(
        4, _OUT, "iterations per line of metrics", checks.at_least(1), resume="free"
    )
    log: tuple[str, ...] = _option(
        (), _OUT, "write the metrics there, too: tensorboard, wandb, or both", checks.loggers,
        type=_names, metavar="NAME,...", resume="free",
    )  # fmt: skip
    profile: str = _option(
        "", _OUT, "iterations FIRST:LAST that torch.profiler records on rank 0, as 10:15",
        checks.window, metavar="FIRST:LAST", resume="free",
    )  # fmt: skip

    traceback: bool = _option(
        False,
        _OUT,
        "show where in the program an error arose, beside its sentence",
        kept=False,
        resume="free",
    )

    # dry run
    dry_run: bool = _option(
        False, _DRY, "print the schedule, memory, traffic and expected time, and start nothing",
        kept=False, resume="free",
    )  # fmt: skip
    alpha: float = _option(
        25.0, _DRY, "assumed microseconds per message between nodes",
        checks.above_zero, kept=False, resume="free",
    )  # fmt: skip
    gigabits: float = _option(
        50.0, _DRY, "assumed Gbit/s of a node's network",
        checks.above_zero, kept=False, resume="free",
    )  # fmt: skip
    rate: float = _option(
        0.0, _DRY,
        "images a second that a worker computes alone; 0: those of the paper's GPU, for ResNet-50",
        checks.zero_or_more, kept=False, resume="free",
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "algo", ALIASES.get(self.algo, self.algo))
        if self.deterministic and self.algo == "auto":  # which goes by what it measures
            object.__setattr__(self, "algo", "halving_doubling")
        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "log", tuple(self.log))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            choices = field.metadata["argparse"].get("choices")
            if choices and value not in choices:
                raise checks.refusal(field.name, value, f"choose one of {', '.join(choices)}")
            check = field.metadata["check"]
            remedy = check(value) if check else None
            if remedy:
                raise checks.refusal(field.name, value, remedy)
        for check in checks.TOGETHER:
            check(self)

    @property
    def source(self) -> Source:
        """Where the images come from."""
        return Source(name=self.data, folder=self.data_dir, side=self.side)

    @property
    def minibatch(self) -> int:
        """The total minibatch kn, in images."""
        return self.batch * self.workers

    @property
    def processes(self) -> int:
        """Processes of the job; each has `workers_virtual` of the workers."""
        return self.workers // self.workers_virtual

    def to_argv(self) -> list[str]:
        """Command-line arguments that `trainer.config.parse` turns into this configuration."""
        argv = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if isinstance(value, bool):
                argv.append(checks.flag(field.name if value else f"no_{field.name}"))
            else:
                text = checks.text(value) if isinstance(value, tuple) else str(value)
                argv.append(f"{checks.flag(field.name)}={text}")
        return argv

"""Where metrics go besides the run directory: TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.config.checks import ConfigError

__all__ = ["Sink", "open_sinks"]


class Sink(Protocol):
    """Takes each line of metrics; `name` is its word for --log."""

    name: str

    def record(self, kind: str, line: Mapping[str, Any]) -> None:
        """A line of kind "train" or "test"; its numbers belong to line["iteration"]."""
        ...

    def close(self) -> None:
        """The run has ended."""
        ...


def open_sinks(
    names: Sequence[str], directory: Path, config: Mapping[str, Any], *, first: int | None
) -> list[Sink]:
    """The sinks called `names`; `first` is the iteration that a resumed run goes on from.

    ConfigError if a package is missing.
    """
    kinds: dict[str, Callable[..., Sink]] = {"tensorboard": _TensorBoard, "wandb": _WandB}
    try:
        return [kinds[name](directory, config, first) for name in names]
    except ImportError as error:
        raise ConfigError(f"--log {','.join(names)}: {error}; install its package") from None


def _numbers(kind: str, line: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{kind}/{name}": float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and name != "iteration"
    }


class _TensorBoard:
    name = "tensorboard"

    def __init__(self, directory: Path, config: Mapping[str, Any], first: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        make: Any = SummaryWriter  # torch gives it no types
        # What was written of iterations that are now done again, TensorBoard then hides.
        self._writer = make(str(directory / "tensorboard"), purge_step=first and first + 1)
        self._writer.add_text("config", "\n".join(f"    {k} = {v}" for k, v in config.items()))

    def record(self, kind: str, line: Mapping[str, Any]) -> None:
        for tag, value in _numbers(kind, line).items():
            self._writer.add_scalar(tag, value, line["iteration"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """One W&B run for each run directory; WANDB_MODE=offline keeps it on this machine."""

    name = "wandb"

    def __init__(self, directory: Path, config: Mapping[str, Any], first: int | None) -> None:
        import wandb

        made = wandb.init(
            project="hier-allreduce",
            name=directory.name,
            dir=str(directory),
            config=dict(config),
            resume="allow" if first else None,
        )
        self._run: Any = made

    def record(self, kind: str, line: Mapping[str, Any]) -> None:
        self._run.log({**_numbers(kind, line), "iteration": line["iteration"]})

    def close(self) -> None:
        self._run.finish()

"""How a run begins: anew, or from a checkpoint, and whether that one fits the options.

Needs no torch: refusals come before any process is started.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.file import CheckpointError, Checkpoints, Facts, read, read_facts
from trainer.config.checks import ConfigError, flag
from trainer.config.options import Config
from trainer.output.files import draft_of
from trainer.output.run_lock import LOCK

__all__ = ["Beginning", "begin", "load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Where a run begins: candidates newest first (none: anew), and files that were refused."""

    candidates: tuple[Path, ...] = ()
    refused: tuple[str, ...] = ()


def begin(config: Config) -> Beginning:
    """Looks at --resume and at the run directory, and checks the checkpoint's configuration.

    ConfigError if the directory holds something else, or options do not fit.
    """
    run = Path(config.out) if config.out else None
    if run and run.exists() and not run.is_dir():
        raise ConfigError(f"--out {run}: is no directory; name another one")
    used = run is not None and run.exists() and any(f.name != LOCK for f in run.iterdir())
    if config.resume not in ("auto", "none", "strict"):
        return _from_path(config, Path(config.resume), run, used)
    refused: list[str] = []
    found = list(Checkpoints(run).usable(refused)) if run and config.resume != "none" else []
    if found:
        _check(config, *found[0])
        return Beginning(candidates=tuple(path for path, _ in found), refused=tuple(refused))
    if config.resume == "strict":
        raise ConfigError(f"--resume strict: {run or '--out'} holds no whole checkpoint")
    if run and used and (refused or config.resume == "none" or _trained(run)):
        what = f"no whole checkpoint ({refused[0]})" if refused else "something, no checkpoint"
        what = "something already" if config.resume == "none" else what
        raise ConfigError(f"--out {run}: holds {what}; name another directory")
    return Beginning()


def load(beginning: Beginning) -> tuple[bytes, Facts, Path, list[str]] | None:
    """The newest candidate whose every byte is right, with lines about those refused.

    None if there is no candidate; CheckpointError if none is whole.
    """
    refused = list(beginning.refused)
    for path in beginning.candidates:
        try:
            return *read(path), path, refused
        except (CheckpointError, OSError) as error:  # noqa: PERF203 - each one may be damaged
            refused.append(str(error))
    if beginning.candidates:
        raise CheckpointError("; ".join(refused))
    return None


def _from_path(config: Config, path: Path, run: Path | None, used: bool) -> Beginning:
    if used and run != path:
        raise ConfigError(f"--out {run}: already holds something; leave --resume {path} out of it")
    try:
        if path.is_dir():
            refused: list[str] = []
            found = list(Checkpoints(path).usable(refused))
            if not found:
                raise CheckpointError(refused[0] if refused else f"{path} holds no checkpoint")
            _check(config, *found[0])
            return Beginning(candidates=tuple(p for p, _ in found), refused=tuple(refused))
        _check(config, path, read_facts(path))
    except (CheckpointError, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"--resume {path}: {text}; give a checkpoint or a run") from None
    return Beginning(candidates=(path,))


def _trained(run: Path) -> bool:
    """Whether a directory holds more than the first seconds of a run that was killed."""
    ours = {"config.toml", "env.json", "metrics.jsonl", "metrics.csv", "checkpoints", LOCK}
    if any((draft_of(file.name) or file.name) not in ours for file in run.iterdir()):
        return True
    metrics = run / "metrics.jsonl"
    return not metrics.exists() or metrics.stat().st_size > 0


def _check(config: Config, path: Path, facts: Facts) -> None:
    if config.resume == "strict" and facts.workers != config.workers:
        raise ConfigError(
            f"--workers {config.workers}: {path} is of {facts.workers} workers, and --resume "
            "strict keeps them; --resume auto rescales the learning rate"
        )
    for name, before, now in _differences(config, facts.config):
        raise ConfigError(
            f"{flag(name)} {now}: {path} was written with {before}; give that, or begin anew in "
            "another --out"
        )


def _differences(config: Config, before: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    free = {"free"} if config.deterministic else {"free", "bits"}
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    for field in dataclasses.fields(config):
        name = field.name
        if field.metadata["resume"] not in free and before.get(name, now[name]) != now[name]:
            yield name, before[name], now[name]

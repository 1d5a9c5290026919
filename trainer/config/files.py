"""Configurations as TOML: the presets of the package, users' files, and what a run leaves."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer.config.checks import flag
from trainer.config.options import Config, ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["did_you_mean", "preset_names", "read_file", "read_preset", "to_toml"]

_PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """What --preset takes."""
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def read_preset(name: str) -> list[str]:
    """The command-line arguments that a preset stands for. ConfigError if there is none."""
    names = preset_names()
    if name not in names:
        remedy = did_you_mean(name, names, f"choose one of {', '.join(names)}")
        raise ConfigError(f"--preset {name}: there is no such preset; {remedy}")
    return read_file(_PRESETS / f"{name}.toml", f"--preset {name}")


def read_file(path: Path, called: str) -> list[str]:
    """The command-line arguments that a TOML file stands for, each of its keys being an option.

    A key is an option without its dashes, with - or _ inside. ConfigError, which begins with
    `called`, if the file cannot be read, is no TOML, or has a key that is no option.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{called}: cannot be read ({error.strerror}); name a file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{called}: is no TOML ({error}); write lines as batch = 32") from None
    names = [field.name for field in dataclasses.fields(Config)]
    argv = []
    for key, value in entries.items():
        name = key.replace("-", "_")
        if name not in names:
            remedy = did_you_mean(name, names, "--help lists the options, write them without --")
            raise ConfigError(f"{called}: {key}: there is no such option; {remedy}")
        argv.append(_argument(name, value, f"{called}: {key}"))
    return argv


def to_toml(config: Config) -> str:
    """The configuration as TOML, which `read_file` reads; without what concerns one run alone."""
    return "".join(
        f"{field.name} = {json.dumps(_as_toml(getattr(config, field.name)))}\n"
        for field in dataclasses.fields(config)
        if field.metadata["kept"]
    )


def did_you_mean(word: str, words: Iterable[str], otherwise: str) -> str:
    """A remedy for a wrong word: the one that was probably meant."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def _argument(name: str, value: Any, called: str) -> str:
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    if isinstance(value, list) and all(isinstance(part, int | float) for part in value):
        return f"{flag(name)}={','.join(map(str, value))}"
    if not isinstance(value, str | int | float):
        raise ConfigError(f"{called}: give a text, a number, true, false or a list of numbers")
    return f"{flag(name)}={value}"


def _as_toml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

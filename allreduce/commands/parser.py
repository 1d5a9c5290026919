"""Command lines that are the same on all ranks of a job: the parser, and types of options."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import NoReturn

__all__ = ["Parser", "at_least", "parse_bytes", "parse_seconds", "words", "words_of"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Parser(argparse.ArgumentParser):
    """An argument parser that is heard on rank 0 alone, and says what is wrong in one sentence."""

    speaks = True

    @property
    def program(self) -> str:
        """Return the name of the module."""
        return self.prog.rpartition(" ")[2]

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line that says what is wrong."""
        self.exit(2, f"{self.program}: {message}\n" if self.speaks else None)

    def print_help(self, file: object = None) -> None:
        """Write the help, on the rank that speaks."""
        if self.speaks:
            sys.stdout.write(self.format_help())


def parse_bytes(text: str) -> int:
    """Return a number of bytes, such as 64K."""
    match = re.fullmatch(r"(\d+)([KMG]?)(i?B)?", text, re.IGNORECASE)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 8, 64K, 32M or 1G")
    return int(match[1]) * _UNITS[match[2].upper()]


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of an option that is an integer of `least` or more."""

    def integer(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no integer of {least} or more")
        return int(text)

    return integer


def parse_seconds(text: str) -> float:
    """Return a positive number of seconds."""
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of seconds")
    return float(text)


def words(text: str) -> tuple[str, ...]:
    """Return the words of a list, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",")))


def words_of(
    known: Collection[str], aliases: Mapping[str, str] = MappingProxyType({})
) -> Callable[[str], tuple[str, ...]]:
    """Return the type of an option that is a list of such words, or of their aliases."""

    def known_words(text: str) -> tuple[str, ...]:
        found = tuple(aliases.get(word, word) for word in words(text))
        for word in found:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        return found

    return known_words

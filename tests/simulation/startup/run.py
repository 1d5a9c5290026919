"""Runs start-ups of simulated groups, each from a seed.

python -m tests.simulation.startup.run --lives 1000
python -m tests.simulation.startup.run --seed 17       # one, with what happens in it
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..planting import planted  # noqa: TID252 - the folder has two names
from .mutants import MUTANTS

if TYPE_CHECKING:
    from .scenario import Scenario  # it imports what may be planted

ROOT = Path(__file__).resolve().parents[3]


class Planter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a text that differs from its file."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Of that module only."""
        return importlib.util.spec_from_loader(fullname, self) if fullname == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the text as the module."""
        exec(compile(self._text, self._name, "exec"), module.__dict__)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lives", type=int, default=1000)
    parser.add_argument("--first", type=int, help="the first seed (default: drawn, and printed)")
    parser.add_argument("--seed", type=int, help="run this one only, and tell what happens")
    parser.add_argument("--mutant", type=int, help="with this planted fault")
    options = parser.parse_args()
    if options.mutant is not None:
        mutant = MUTANTS[options.mutant]
        module = mutant.file.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, Planter(module, planted(mutant, ROOT)))
    logging.disable(logging.CRITICAL)
    if options.seed is not None:
        return tell(options.seed)
    first = random.SystemRandom().randrange(10**9) if options.first is None else options.first
    return live(first, options.lives)


def live(first: int, number: int) -> int:
    """Run lives until one goes wrong; that one is made small and told."""
    from .life import Life  # not before a fault is planted
    from .scenario import draw

    print(f"seeds {first} to {first + number - 1}")
    begun = time.monotonic()
    for seed in range(first, first + number):
        if Life(draw(seed)).run():
            return tell(seed)
    print(f"{number} lives, {number / (time.monotonic() - begun):.0f} a second: nothing wrong")
    return 0


def tell(seed: int) -> int:
    """Tell one life: without those faults that it goes wrong without, if it does."""
    from .life import Life
    from .scenario import draw
    from .world import BEGIN, World

    kept = list(range(len(draw(seed).faults)))
    if Life(draw(seed)).run():
        for fault in tuple(kept):
            fewer = [i for i in kept if i != fault]
            if Life(chosen(draw(seed), fewer)).run():
                kept = fewer
    life = Life(chosen(draw(seed), kept), lambda seed: World(seed, tells=True))
    print(life.scenario)
    wrong = life.run()
    for rank in life.ranks:
        ended = "never" if rank.ended is None else f"after {rank.ended - BEGIN:.4f} s"
        print(f"{rank.name} ended {ended}: {rank.result!r}")
    print(f"WRONG: {wrong}" if wrong else "nothing wrong")
    return bool(wrong)


def chosen(scenario: Scenario, faults: Sequence[int]) -> Scenario:
    """The scenario with some of its faults."""
    return replace(scenario, faults=[scenario.faults[i] for i in faults])


if __name__ == "__main__":
    sys.exit(main())

"""The launcher of the suite's tests sees every way in which a rank can end."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
from conformance.ranks import Launcher, Result, Run

SKIPPED = 77


class Case:
    """Ends each rank as the name of the test says; its rank 1 is the one with a trouble."""

    @staticmethod
    def _run(rank: int, name: str, _file: str, _pipe: object) -> None:
        if name == "skips":
            sys.exit(SKIPPED)
        if rank == 1:
            getattr(Case, name)()
        sys.exit(0)

    @staticmethod
    def passes() -> None:
        pass

    @staticmethod
    def raises() -> None:
        raise ValueError("something is wrong")

    @staticmethod
    def exits() -> None:
        sys.exit(10)

    @staticmethod
    def skips_alone() -> None:
        sys.exit(SKIPPED)

    @staticmethod
    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def hangs() -> None:
        time.sleep(60)


def main(name: str) -> None:
    launcher = Launcher(
        suite=ModuleType("suite"), case=Case, ranks=3, deadline=5, skips={SKIPPED: "no GPU"}
    )
    test = Run(launcher, name)
    while not (result := test.poll()):
        time.sleep(0.01)
    print(json.dumps(asdict(result)))


def run(name: str) -> Result:
    """In a process of its own: forked ranks would take pytest's exit handlers along."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    output = subprocess.check_output([sys.executable, __file__, name], env=env, timeout=30)
    return Result(**json.loads(output))


@pytest.mark.parametrize(
    ("name", "outcome", "why"), [("passes", "passed", ""), ("skips", "skipped", "no GPU")]
)
def test_ranks_that_agree_give_their_outcome(name: str, outcome: str, why: str) -> None:
    result = run(name)
    assert (result.outcome, result.why) == (outcome, why)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("raises", "ValueError: something is wrong"),
        ("exits", "rank 1 ended with status 10"),
        ("skips_alone", "rank 1 ended with status 77"),
        ("dies", "rank 1 ended by SIGKILL"),
        ("hangs", "in hangs"),
    ],
)
def test_one_rank_in_trouble_fails_the_test(name: str, why: str) -> None:
    result = run(name)
    assert result.outcome == "failed"
    assert why in result.why


if __name__ == "__main__":
    main(sys.argv[1])

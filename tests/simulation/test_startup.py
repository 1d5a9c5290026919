"""Start-ups of whole groups under virtual time: known seeds, planted faults."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from simulation.planting import planted
from simulation.startup.clock import clock
from simulation.startup.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
LIVES = 3000  # within which a planted fault has to be found


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation.startup.run", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.timeout(200)
def test_the_first_seeds_show_nothing():
    done = run("--first", "1", "--lives", "500")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_seed_gives_the_same_life_again():
    tellings = {re.sub(r"\bpid \d+", "pid", run("--seed", "17").stdout) for _ in range(2)}
    assert len(tellings) == 1
    assert "rank 4 ended after" in tellings.pop()


def found(number: int) -> str:
    """What is said of the first life that goes wrong with the fault, and does not without it."""
    said = run("--first", "1", "--lives", str(LIVES), "--mutant", str(number)).stdout
    seed = re.search(r"^seed (\d+):", said, re.MULTILINE)
    wrong = seed and "WRONG" in said and run("--seed", seed[1]).returncode == 0
    return said[-1000:] if wrong else ""


@pytest.mark.timeout(200)
def test_a_planted_fault_is_found():
    assert found(2)


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=lambda n: MUTANTS[n].name)
def test_every_planted_fault_is_found(number):
    said = found(number)
    print(said)
    assert said


def test_planted_faults_are_in_the_sources():
    for mutant in MUTANTS:
        planted(mutant, ROOT)


def test_a_start_up_takes_rounds_by_the_logarithm_of_its_ranks():
    few, many = clock(16), clock(128)
    # No table of the store's is read once for each rank.
    assert max(many[1].values()) <= 20
    assert many[0] < 3 * few[0]

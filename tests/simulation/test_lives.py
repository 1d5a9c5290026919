"""Whole groups under virtual time: new seeds, seeds that once showed a fault, planted faults."""

import os
import random
import re
import subprocess
from pathlib import Path

import pytest
from simulation.build import CSRC, build
from simulation.mutants import MUTANTS
from simulation.planting import planted
from simulation.run import lives

SEEDS = Path(__file__).with_name("seeds.txt")
SECONDS = float(os.environ.get("SIMULATE_SECONDS", "0"))
LIVES = 20_000  # within which a planted fault has to be found


@pytest.fixture(scope="session")
def program() -> Path:
    return build()


@pytest.mark.timeout(200)
def test_the_first_seeds_show_nothing(program):
    done = subprocess.run([program, "1", "8000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(SECONDS == 0, reason="SIMULATE_SECONDS runs new seeds for so long")
@pytest.mark.timeout(SECONDS + 200)
def test_new_seeds_show_nothing(program):
    first = random.SystemRandom().randrange(10**9)
    for status, text in lives(program, first, SECONDS, len(os.sched_getaffinity(0))):
        print(text)
        assert status == 0, text


@pytest.mark.timeout(200)
def test_seeds_that_showed_something_once(program):
    seeds = [line.split()[0] for line in SEEDS.read_text().splitlines() if line[:1].isdigit()]
    assert seeds
    for seed in seeds:
        done = subprocess.run([program, seed, "1"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_seed_gives_the_same_life_again(program):
    tellings = [subprocess.check_output([program, "17"]) for _ in range(2)]
    assert tellings[0] == tellings[1]


def found(program: Path) -> str:
    """What the program says of the first life that goes wrong; "" if none does."""
    done = subprocess.run(
        [program, "1", str(LIVES), "120"], capture_output=True, text=True, errors="replace"
    )
    if done.returncode == 0:
        return ""
    return done.stdout or f"ended with {done.returncode}"  # a crash is found, too


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS[:1], ids=lambda mutant: mutant.name)
def test_a_planted_fault_is_found(mutant, tmp_path):
    assert found(build(tmp_path, {mutant.file: planted(mutant, CSRC)}))


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_planted_fault_is_found(mutant, tmp_path):
    said = found(build(tmp_path, {mutant.file: planted(mutant, CSRC)}))
    print("; ".join(re.findall(r"^(?:seed \d+$|WRONG.*)", said, re.MULTILINE)[:2]) or said)
    assert said


def test_planted_faults_are_in_the_sources():
    for mutant in MUTANTS:
        planted(mutant, CSRC)

"""docs/tutorial.md: its programs run as they stand, on 4 ranks, and print what the page says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
PROGRAMS = {
    block.split(":")[0].removeprefix("# "): block
    for block in re.findall(r"^```python\n(.*?)^```", TUTORIAL, re.DOTALL | re.MULTILINE)
}

pytestmark = pytest.mark.timeout(110)


@pytest.fixture
def run(tmp_path: Path, run_example):
    pytest.importorskip("torch")  # torchrun starts them here

    def start(name: str, **environment: str) -> str:
        program = tmp_path / name
        program.write_text(PROGRAMS[name])
        return run_example("torchrun.sh", program, **environment)

    return start


def test_these_are_all() -> None:
    assert set(PROGRAMS) == {"first.py", "training.py", "own.py"}


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_the_first_allreduce(run, nodes: str) -> None:
    said = run("first.py", ALLREDUCE_NODES=nodes)
    assert sorted(said.splitlines()) == [f"rank {r} of 4: [10. 10. 10.]" for r in range(4)]


def test_the_first_training_run(run) -> None:
    lines = run("training.py").splitlines()
    assert len(lines) == 4
    assert all("-> 0.0000" in line for line in lines)
    assert len({line.rpartition(" ")[2] for line in lines}) == 1, "the same weights everywhere"


def test_an_algorithm_of_ones_own(run) -> None:
    said = run("own.py")
    assert "without its last move: " in said
    assert len(re.findall(r"^(?:ring|own): [\d.]+ ms \(SIMULATED\)$", said, re.MULTILINE)) == 2
    assert len(re.findall(r"^rank \d of 4: the sum is right$", said, re.MULTILINE)) == 4

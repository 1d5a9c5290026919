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


# Lines of several ranks may run together: they write into one pipe.
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_the_first_allreduce(run, nodes: str) -> None:
    said = run("first.py", ALLREDUCE_NODES=nodes)
    assert sorted(re.findall(r"rank (\d) of 4: \[10\. 10\. 10\.\]", said)) == list("0123")


def test_the_first_training_run(run) -> None:
    digests = re.findall(r"loss [\d.]+ -> 0\.0000, weights (\w{8})", run("training.py"))
    assert len(digests) == 4
    assert len(set(digests)) == 1, "the same weights everywhere"


def test_an_algorithm_of_ones_own(run) -> None:
    said = run("own.py")
    assert "without its last move: " in said
    assert set(re.findall(r"(ring|own): [\d.]+ ms \(SIMULATED\)", said)) == {"ring", "own"}
    assert sorted(re.findall(r"rank (\d) of 4: the sum is right", said)) == list("0123")

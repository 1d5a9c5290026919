"""Stock DistributedDataParallel on hier trains to the same weights as on gloo."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RANKS = 3
DEADLINE = 90

pytestmark = pytest.mark.timeout(DEADLINE + 20)


# The backends add three gradients in different orders: a rounding or two of difference in each
# iteration, which later ones amplify a little. Any other difference would show in float64.
ROUNDING = {"torch.float32": 2.0**-23, "torch.float64": 2.0**-52}
APART = 30  # roundings of the way that the weights have moved; a few are usual


@pytest.mark.parametrize("nodes", [1, 2])
def test_weights_differ_by_summation_order_alone(nodes: int, tmp_path: Path) -> None:
    for output in launch(nodes, tmp_path):
        found = dict(re.findall(r"^(torch\.float\d+) (\S+)$", output, re.MULTILINE))
        assert found.keys() == ROUNDING.keys(), output
        assert all(float(found[dtype]) <= APART * eps for dtype, eps in ROUNDING.items()), output


def launch(nodes: int, folder: Path) -> list[str]:
    """Runs all ranks to their end and returns what each wrote."""
    env = {**os.environ, "ALLREDUCE_NODES": str(nodes), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.conformance.ddp_against_gloo"]
    command += [f"--store={folder}/store", f"--ranks={RANKS}"]
    logs = [folder / f"rank{rank}.log" for rank in range(RANKS)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as output:
            processes.append(
                subprocess.Popen(
                    [*command, f"--rank={rank}"], cwd=ROOT, env=env, stdout=output, stderr=output
                )
            )
    try:
        for process in processes:
            process.wait(DEADLINE)
    finally:
        for process in processes:
            process.kill()
    return [log.read_text() for log in logs]

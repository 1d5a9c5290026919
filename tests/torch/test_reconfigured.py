"""Process groups whose members change: see programs/reconfigured.py."""

import pytest
from torch_release import needs_torch

PROGRAM = "reconfigured.py"
LAYOUTS = [(3, 1), (3, 2), (4, 2)]
pytestmark = [
    pytest.mark.timeout(110),
    needs_torch(2, 14, "process groups change from torch 2.14 on"),
]


def test_reconfigured(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_the_living_go_on_and_another_process_joins_them(launch, nodes: int) -> None:
    start, finish = launch
    processes = start("member_dies.py", 4, nodes)
    log = finish(processes)
    assert [process.returncode for process in processes] == [0, 3, 0, 0], log
    assert log.count("three again") == 3

"""Device tensors in the backend, on the CPU's streams: programs/device_*.py."""

import pytest

ENVIRONMENT = {"ALLREDUCE_DEVICE_RUNTIME": "cpu"}
PROGRAM = "device_collectives.py"
LAYOUTS = [(2, 1), (3, 3), (4, 2)]

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("cpu_device")]


def test_device_collectives(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_dead_rank_ends_the_calls_of_all_and_no_stream_hangs(launch, nodes: int) -> None:
    start, finish = launch
    processes = start("device_peer_dies.py", ranks=3, nodes=nodes, **ENVIRONMENT)
    log = finish(processes)
    assert log.count("all raised") == 2, log
    assert [process.returncode for process in processes] == [0, 3, 0], log

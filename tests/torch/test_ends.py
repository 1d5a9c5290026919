"""How processes end: a rank that dies, a process that leaves while callbacks run."""

import pytest

pytestmark = pytest.mark.timeout(110)


def test_a_dead_rank_is_a_typed_error_in_every_way_of_waiting(launch) -> None:
    start, finish = launch
    processes = start("peer_dies.py", ranks=2)
    log = finish(processes)
    assert "all raised" in log, log
    assert processes[0].returncode == 0, log


@pytest.mark.parametrize("nodes", [1, 2])
def test_leaving_while_callbacks_run_is_no_crash(launch, nodes: int) -> None:
    start, finish = launch
    processes = start("leaves_early.py", ranks=2, nodes=nodes)
    log = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], log
    assert log.count("leaving") == 2

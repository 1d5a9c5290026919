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


@pytest.mark.parametrize("any_source", ["", "1"], ids=["", "any source"])
@pytest.mark.parametrize("nodes", [1, 3])
def test_destroying_a_group_cancels_receives_that_nobody_sends_for(
    launch, nodes: int, any_source: str
) -> None:
    start, finish = launch
    processes = start("leaves_receives.py", ranks=3, nodes=nodes, ANY_SOURCE=any_source)
    log = finish(processes)
    assert [process.returncode for process in processes] == [0] * 3, log
    assert log.count("destroyed") == 3


@pytest.mark.parametrize("way", ["numpy", "numpy work", "torch", "torch work", "torch loop"])
def test_a_daemon_thread_inside_a_collective_does_not_spoil_the_exit(launch, way: str) -> None:
    start, finish = launch
    processes = start("exits_inside.py", ranks=2, WAY=way)
    log = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], log
    assert log.count("leaving") == 2

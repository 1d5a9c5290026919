"""ShardedSGD as one kernel: see programs/fused_step.py."""

import host_kernels
import pytest

PROGRAM = "fused_step.py"
LAYOUTS = [(2, 1), (3, 1), (4, 1)]
ENVIRONMENT = {"ALLREDUCE_DEVICE_RUNTIME": "cpu"}

pytestmark = pytest.mark.timeout(110)


@pytest.fixture(scope="module", autouse=True)
def host_fused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cuda")
    host_kernels.library("host_fused", folder)
    ENVIRONMENT["HOST_FUSED"] = str(folder / "host_fused.so")


def test_fused_step(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)


def test_a_dead_rank_ends_the_kernels_that_wait_for_it(launch) -> None:
    start, finish = launch
    processes = start("fused_peer_dies.py", ranks=3, **ENVIRONMENT)
    log = finish(processes)
    assert log.count("all raised") == 2, log

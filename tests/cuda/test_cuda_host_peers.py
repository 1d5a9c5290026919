"""The barrier and the kernels over peers' memory, on the CPU: virtual ranks, a thread per block."""

import functools
from collections.abc import Callable
from pathlib import Path

import host_kernels
import pytest

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache  # it takes long to compile
    def build(sanitizer: str) -> Path:
        return host_kernels.program("host_peers", tmp_path_factory.mktemp("cuda"), sanitizer)

    return build


@pytest.fixture(params=host_kernels.SANITIZERS)
def program(request: pytest.FixtureRequest, programs: Callable[[str], Path]) -> Path:
    return programs(request.param)


@pytest.fixture
def threads(programs: Callable[[str], Path]) -> Path:
    return programs("tsan")


def test_the_loop_is_right_and_clean(program: Path) -> None:
    done = host_kernels.run(program, "correct")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("mutant", ["relaxed", "without-first", "without-last"])
def test_a_barrier_that_orders_nothing_is_a_data_race(threads: Path, mutant: str) -> None:
    done = host_kernels.run(threads, mutant)
    assert done.returncode != 0
    assert "WARNING: ThreadSanitizer: data race" in done.stderr


def test_abort_releases_who_waits(program: Path) -> None:
    done = host_kernels.run(program, "abort")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "errors 255 255, aborted 1 1 1\n"


def test_a_rank_that_does_not_come_is_named(program: Path) -> None:
    done = host_kernels.run(program, "absent")
    assert done.returncode == 0, done.stderr
    errors, aborted = done.stdout.strip().split(", ")
    # Whoever runs out of time first names rank 2; the other may be told to stop before it does.
    assert set(errors.split()[1:]) <= {"3", "255"}
    assert "3" in errors.split()
    assert aborted == "aborted 1 1 1"

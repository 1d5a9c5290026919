"""Every rank gets the same bits, whatever its threads do with subnormal numbers and roundings."""

import ctypes
import platform
import time
from typing import Any

import numpy as np
import pytest
from group_cases import SOME_LAYOUTS, nodes, size
from worlds import run_threads

CALLS = 20
TO_NEAREST, DOWNWARD = 0, {"x86_64": 0x400, "aarch64": 0x800000}.get(platform.machine(), 0)


def flush_subnormal_numbers(on: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert torch.set_flush_denormal(on)


def round_downward(on: bool) -> None:
    assert ctypes.CDLL("libm.so.6").fesetround(DOWNWARD if on else TO_NEAREST) == 0


def subnormal(rank: int, count: int, call: int) -> np.ndarray:
    bits = np.random.default_rng([rank, call]).integers(1, 1 << 22, count, dtype=np.uint32)
    return bits.view(np.float32)


def ordinary(rank: int, count: int, call: int) -> np.ndarray:
    return np.random.default_rng([rank, call]).standard_normal(count).astype(np.float32)


def tiny_is_kept() -> bool:
    return bool(np.array([1e-40], np.float32) * np.float32(1) != 0)


def tenth_is_nearest() -> bool:
    return bool(np.array([1], np.float64) / 10 == 0.1)


CASES = {
    "flushed": (flush_subnormal_numbers, subnormal, tiny_is_kept),
    "rounded": (round_downward, ordinary, tenth_is_nearest),
}


@pytest.mark.parametrize("count", [1000, 50_000])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("layout", "local"), SOME_LAYOUTS)
def test_what_the_threads_are_set_to_changes_no_bit(
    layout: str, local: str, case: str, count: int
) -> None:
    """Callers drive some calls, the worker, which was born before, the others."""
    set_to, make, is_usual = CASES[case]
    set_to(False)

    def body(comm: Any) -> list[bytes]:
        rows = [make(comm.rank, count, call) for call in range(CALLS)]
        wanted = [comm.allreduce(x.copy(), "avg").tobytes() for x in rows]
        work = comm.allreduce(np.ones(1), async_op=True)
        time.sleep(0.01)
        work.wait()
        if comm.rank != 0:  # set alike, all ranks could be wrong alike
            set_to(True)
        try:
            found = []
            for call, x in enumerate(rows):
                work = comm.allreduce(x, "avg", async_op=call % 2 == 1)
                if call % 2 == 1:
                    time.sleep(0.001 * (call % 3))
                    work.wait()
                found.append(x.tobytes())
            assert is_usual() == (comm.rank == 0), "the caller's own setting is gone"
        finally:
            set_to(False)
        assert [a == b for a, b in zip(found, wanted, strict=True)] == [True] * CALLS
        return found

    results = run_threads(size(layout), body, nodes=nodes(layout), local=local)
    assert all(found == results[0] for found in results)

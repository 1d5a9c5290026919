"""The reduction kernels on one core, beside NumPy's and torch's additions and a memory copy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from allreduce import _C
from benchmarks.conftest import Report

SIZES = {"64 KiB": 1 << 16, "1 MiB": 1 << 20, "32 MiB": 1 << 25}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
WAYS = (2, 4, 8)
BYTES_PER_ROUND = 1 << 24
SLOWEST_RATIO = 3.0  # how many times slower than float32, per byte, a 16-bit float may be

pytestmark = pytest.mark.timeout(120)


@dataclass
class Table:
    """GB/s of message by (size, dtype, what); printed when the module is done."""

    speed: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        columns = ["copy", "numpy", "torch", "pair", *(f"k={ways}" for ways in WAYS)]
        yield (
            "GB/s of message".ljust(20)
            + "".join(f"{name:>8}" for name in columns)
            + (f"{'/peer':>8}{'f32/this':>10} (limit {SLOWEST_RATIO})")
        )
        for size in SIZES:
            for dtype in DTYPES:
                speed = {what: self.speed.get((size, dtype, what)) for what in columns}
                if not any(speed.values()):
                    continue
                cells = "".join(f"{x:8.1f}" if x else f"{'-':>8}" for x in speed.values())
                pair = speed["pair"]
                peers = [x for x in (speed["numpy"], speed["torch"]) if x]
                f32 = self.speed.get((size, "float32", "pair"))
                if pair and peers:
                    cells += f"{pair / max(peers):8.2f}"
                if pair and f32:
                    cells += f"{f32 / pair:10.2f}"
                yield f"{size:8}{dtype:12}{cells}"


@pytest.fixture(scope="module")
def table(report: Report) -> Iterator[Table]:
    filled = Table()
    yield filled
    if filled.speed:
        for line in filled.lines():
            report.row(f"REDUCTION KERNELS on one core, {_C.instruction_set()}", line)


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def measure(benchmark: Any, table: Table, size: str, dtype: str) -> Callable[..., None]:
    """Times a call and notes bytes of message per second of its best round."""

    def run(what: str, call: Callable[[], object]) -> None:
        iterations = max(1, BYTES_PER_ROUND // SIZES[size])
        benchmark.pedantic(call, rounds=7, iterations=iterations, warmup_rounds=1)
        if benchmark.stats is not None:  # there are none with --benchmark-disable
            table.speed[size, dtype, what] = SIZES[size] / benchmark.stats.stats.min / 1e9

    return run


def arrays(size: str, dtype: str, number: int) -> list[np.ndarray]:
    storage = np.dtype(DTYPES[dtype])
    return [np.zeros(SIZES[size] // storage.itemsize, storage) for _ in range(number)]


def test_copy(measure: Callable[..., None], size: str, dtype: str) -> None:
    dst, src = arrays(size, dtype, 2)
    measure("copy", lambda: np.copyto(dst, src))


def test_pair(measure: Callable[..., None], size: str, dtype: str) -> None:
    dst, src = arrays(size, dtype, 2)
    measure("pair", lambda: _C.reduce(dst, src, dtype, "sum"))


@pytest.mark.parametrize("ways", WAYS)
def test_tree(measure: Callable[..., None], size: str, dtype: str, ways: int) -> None:
    out, *sources = arrays(size, dtype, ways + 1)
    measure(f"k={ways}", lambda: _C.reduce_many([out], sources, dtype, "sum"))


def test_numpy_add(measure: Callable[..., None], size: str, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.skip("NumPy has no bfloat16")
    dst, src = arrays(size, dtype, 2)
    measure("numpy", lambda: np.add(dst, src, out=dst))


def test_torch_add(measure: Callable[..., None], size: str, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is a peer of this benchmark")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dst, src = (
            torch.from_numpy(array.view(np.uint8)).view(getattr(torch, dtype))
            for array in arrays(size, dtype, 2)
        )
        measure("torch", lambda: dst.add_(src))
    finally:
        torch.set_num_threads(threads)

"""The kernels' machine code: wide loads, nothing in local memory, no read that bypasses coherence.

A peer writes what a kernel reads, so the loads that the compiler may take for data that nobody
writes (LDG with .CONSTANT) would read stale values, on several GPUs only.
"""

import json
import re

import pytest
import sass

from allreduce.commands import native_build

READS = "squares_kernel"  # and writes a pair of sums
TINY = "ratios_kernel"
MOVES_FOURS = ("pack_kernel", "reduce_scatter_kernel", "allgather_kernel")
SLACK = 8  # registers that another release of nvcc may take more

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def kernels() -> dict[str, sass.Kernel]:
    cuobjdump = native_build.find_cuda_tool("cuobjdump")
    if not sass.BUILT.exists():
        pytest.skip("built without CUDA: no machine code to look at")
    if cuobjdump is None:
        pytest.skip(f"no cuobjdump: {sass.REMEDY}")
    return sass.read(cuobjdump, sass.BUILT)


def violations(kernels: dict[str, sass.Kernel], pattern: str) -> list[str]:
    return [name for name, kernel in kernels.items() if kernel.count(pattern)]


def functions(kernels: dict[str, sass.Kernel]) -> set[str]:
    return {re.split("[ <]", name)[1] for name in kernels}


def test_every_kernel_moves_16_bytes_at_a_time_or_four_elements(
    kernels: dict[str, sass.Kernel],
) -> None:
    """Four of f32 are 16 bytes, those of a 16-bit float 8: a warp's 256 bytes adjoin either way."""
    for access, others in ((r"LDG?\.E.*\.", {TINY}), (r"STG?\.E.*\.", {READS, TINY})):
        for name, kernel in kernels.items():
            if re.split("[ <]", name)[1] in others:
                continue
            halves = any(f in name for f in MOVES_FOURS) and "Float16" in name
            assert kernel.count(access + ("(64|128)" if halves else "128")), name


def test_no_kernel_uses_local_memory(kernels: dict[str, sass.Kernel]) -> None:
    assert not violations(kernels, r"(LDL|STL)\b")
    assert not [name for name, kernel in kernels.items() if kernel.stack_bytes]


def test_no_load_bypasses_coherence(kernels: dict[str, sass.Kernel]) -> None:
    assert not violations(kernels, sass.NON_COHERENT)


def test_barriers_release_and_acquire_for_the_whole_system(kernels: dict[str, sass.Kernel]) -> None:
    waiting = {"reduce_scatter_kernel", "allgather_kernel", "fused_kernel"}
    seen = functions(kernels)
    for fence in (sass.RELEASE, sass.ACQUIRE):
        fenced = {name: kernel for name, kernel in kernels.items() if kernel.has(fence)}
        assert functions(fenced) == waiting & seen
        assert all(name in fenced for name in kernels if re.split("[ <]", name)[1] in waiting)


def test_double_arithmetic_is_where_it_is_meant(kernels: dict[str, sass.Kernel]) -> None:
    doubles = violations(kernels, r"D(ADD|MUL|FMA|SETP|MNMX)\b")
    assert doubles
    assert all("Plain<double>" in name for name in doubles)


def test_registers_keep_to_the_baseline(kernels: dict[str, sass.Kernel]) -> None:
    baseline: dict[str, int] = json.loads(sass.BASELINE.read_text())
    known, built = ({name.split()[0] for name in names} for names in (baseline, kernels))
    here = {name: kernel for name, kernel in kernels.items() if name.split()[0] in known}
    assert here.keys() == {name for name in baseline if name.split()[0] in built}
    grown = {
        name: (baseline[name], kernel.registers)
        for name, kernel in here.items()
        if kernel.registers > baseline[name] + SLACK
    }
    assert not grown

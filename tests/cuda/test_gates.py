"""What the compiler must refuse and the reader of machine code must see, planted and found."""

import re
import subprocess
from pathlib import Path

import pytest
import sass

from allreduce.commands import native_build

NVCC = native_build.find_nvcc()
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(NVCC is None, reason="no nvcc to compile the planted kernels with"),
]

CLEAN = "__global__ void f(float* x) { x[threadIdx.x] *= 2.0f; }\n"
DOUBLE = "__global__ void f(float* x) { x[threadIdx.x] *= 2.1; }\n"
STACK = """
__device__ __noinline__ void g(float* y, int k) { for (int i = 0; i < k; ++i) y[i] += 1; }
__global__ void f(float* x, int k) {
  float copy[64];
  for (int i = 0; i < 64; ++i) copy[i] = x[i];
  g(copy, k);
  x[0] = copy[k];
}
"""
FLAGS = """
#include <cuda/atomic>
using Flag = cuda::atomic_ref<unsigned, cuda::thread_scope_system>;
__global__ void f(unsigned* there, unsigned* here, float* x) {
  x[threadIdx.x] += 1;
  Flag(*there).store(1, cuda::memory_order_release);
  while (Flag(*here).load(cuda::memory_order_acquire) == 0) {}
  x[threadIdx.x + 1] += 1;
}
"""
NON_COHERENT = """
__global__ void f(float* out, const float* __restrict__ x) { out[threadIdx.x] = x[threadIdx.x]; }
"""


def compile_planted(
    folder: Path, text: str, name: str = "planted.cu"
) -> subprocess.CompletedProcess[str]:
    source = folder / name
    source.write_text(text)
    gates = native_build.cuda_gates(source)
    command = [str(NVCC), "-arch=sm_90", "-cubin", *gates, str(source), "-o", str(folder / "k")]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIER_WERROR", "1")


def test_a_clean_kernel_compiles(tmp_path: Path) -> None:
    done = compile_planted(tmp_path, CLEAN)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "word"), [(DOUBLE, "double"), (STACK, "Local memory")], ids=["double", "stack"]
)
def test_what_slows_a_kernel_is_refused(tmp_path: Path, text: str, word: str) -> None:
    done = compile_planted(tmp_path, text)
    assert done.returncode != 0
    assert re.search(word, done.stderr), done.stderr


def test_double_arithmetic_is_allowed_by_name(tmp_path: Path) -> None:
    assert compile_planted(tmp_path, DOUBLE, "planted_f64.cu").returncode == 0


def planted_kernel(folder: Path, text: str) -> sass.Kernel:
    cuobjdump = native_build.find_cuda_tool("cuobjdump")
    if cuobjdump is None:
        pytest.skip(f"no cuobjdump: {sass.REMEDY}")
    done = compile_planted(folder, text)
    assert done.returncode == 0, done.stderr
    (kernel,) = sass.read(cuobjdump, folder / "k").values()
    return kernel


def test_a_non_coherent_load_is_seen(tmp_path: Path) -> None:
    assert planted_kernel(tmp_path, NON_COHERENT).count(sass.NON_COHERENT) == 1


@pytest.mark.parametrize(
    ("order", "released", "acquired"),
    [("", True, True), ("release", False, True), ("acquire", True, False)],
)
def test_a_relaxed_flag_is_seen(tmp_path: Path, order: str, released: bool, acquired: bool) -> None:
    text = FLAGS.replace(f"memory_order_{order}", "memory_order_relaxed") if order else FLAGS
    kernel = planted_kernel(tmp_path, text)
    assert (kernel.has(sass.RELEASE), kernel.has(sass.ACQUIRE)) == (released, acquired)

"""What cannot be reduced is refused in words."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from allreduce import _C

pytestmark = pytest.mark.timeout(30)


def ones(dtype: str, count: int = 4) -> np.ndarray:
    return np.ones(count, "uint16" if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint8", "bool"])
def test_an_average_needs_floats(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"'avg' on dtype {dtype}.*'sum'"):
        _C.reduce(ones(dtype), ones(dtype), dtype, "avg")


@pytest.mark.parametrize("bitwise", ["band", "bor", "bxor"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_bitwise_operations_need_integers(dtype: str, bitwise: str) -> None:
    with pytest.raises(ValueError, match=f"'{bitwise}' on dtype {dtype}.*integer"):
        _C.reduce_many([ones(dtype)], [ones(dtype)], dtype, bitwise)


def test_an_unknown_dtype_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'complex64'.*float32"):
        _C.reduce(ones("float32"), ones("float32"), "complex64", "sum")


def test_an_unknown_operation_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'mean'.*avg"):
        _C.reduce(ones("float32"), ones("float32"), "float32", "mean")


@pytest.mark.parametrize("divisor", [0, -1])
def test_a_divisor_is_positive(divisor: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, not {divisor}"):
        _C.divide(ones("float32"), "float32", divisor)


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_only_floats_are_divided(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"{dtype} cannot be divided"):
        _C.reduce_many([ones(dtype)], [ones(dtype)], dtype, "sum", 2)


def test_a_reduction_needs_a_source_and_an_output() -> None:
    with pytest.raises(ValueError, match="sources, not 0"):
        _C.reduce_many([ones("int8")], [], "int8", "sum")
    with pytest.raises(ValueError, match="at least one output"):
        _C.reduce_many([], [ones("int8", 0)], "int8", "sum")


def test_an_instruction_set_that_is_not_here_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'mmx'.*baseline"):
        _C.reduce(ones("int8"), ones("int8"), "int8", "sum", "mmx")


def test_arrays_must_fit_each_other_and_the_dtype() -> None:
    with pytest.raises(ValueError, match="equal sizes, not 3 and 4"):
        _C.reduce(ones("int8"), ones("int8", 3), "int8", "sum")
    with pytest.raises(ValueError, match="dtype float32, not float64"):
        _C.reduce(ones("float64"), ones("float64"), "float32", "sum")
    with pytest.raises(ValueError, match="contiguous"):
        _C.reduce(ones("int8", 8)[::2], ones("int8"), "int8", "sum")


UNALIGNED = """
import numpy as np
from allreduce import _C
x, y = (np.zeros(8 * 5000 + 8, np.uint8)[1:-7].view(np.float64) for _ in range(2))
x[:], y[:] = np.arange(5000), 1
{call}
assert (x == {want}).all()
"""


@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
@pytest.mark.parametrize(
    ("call", "want"),
    [
        ("_C.reduce(x, y, 'float64', 'sum', '{}')", "np.arange(5000) + 1"),
        ("_C.reduce_many([x], [x, y], 'float64', 'sum', 1, '{}')", "np.arange(5000) + 1"),
        ("_C.divide(x, 'float64', 2, '{}')", "np.arange(5000) / 2"),
    ],
)
def test_a_kernel_refuses_an_unaligned_pointer(call: str, want: str, instruction_set: str) -> None:
    """A group hands it none. Built with NDEBUG it works, and is right."""
    code = UNALIGNED.format(call=call.format(instruction_set), want=want)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode != 0:
        assert done.returncode == -signal.SIGABRT
        assert "is_aligned" in done.stderr, done.stderr

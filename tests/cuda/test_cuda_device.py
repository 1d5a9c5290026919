"""The reduce table on a real GPU: the bits of the CPU table. Skipped where there is none."""

from types import ModuleType

import numpy as np
import pytest

import allreduce.cuda
from allreduce import _C

reason = allreduce.cuda.why_not()
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(reason is not None, reason=f"no GPU: {reason}"),
]

STORAGE = {"float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "u2", "int32": "i4"}
COUNTS = (1, 17, 1000, 100_003)


@pytest.fixture
def torch() -> ModuleType:
    return pytest.importorskip("torch", reason="torch provides the device memory of this test")


def make(rng: np.random.Generator, dtype: str, count: int) -> np.ndarray:
    if dtype == "bfloat16":
        return (rng.standard_normal(count).astype("f4").view("u4") >> 16).astype("u2")
    return (rng.standard_normal(count) * 100).astype(STORAGE[dtype])


@pytest.mark.parametrize("ways", [1, 2, 3, 4, 8, 13, 128])
@pytest.mark.parametrize("dtype", STORAGE)
def test_the_gpu_has_the_bits_of_the_cpu_table(
    torch: ModuleType, rng: np.random.Generator, dtype: str, ways: int
) -> None:
    from allreduce import _cuda

    for count in COUNTS:
        for start in (0, 1):
            sources = [make(rng, dtype, count + start) for _ in range(ways)]
            expected = np.zeros_like(sources[0][start:])
            _C.reduce_many([expected], [source[start:] for source in sources], dtype, "sum")
            itemsize = sources[0].itemsize
            on_gpu = [torch.from_numpy(source.view("u1")).cuda() for source in sources]
            addresses = [tensor.data_ptr() + start * itemsize for tensor in on_gpu]
            _cuda.reduce_many(addresses[:1], addresses, dtype, "sum", count)
            torch.cuda.synchronize()
            out = on_gpu[0].cpu().numpy()[start * itemsize :]
            assert out.tobytes() == expected.tobytes()


def test_a_misaligned_pointer_is_refused(torch: ModuleType) -> None:
    from allreduce import _cuda

    data = torch.zeros(64, dtype=torch.uint8, device="cuda")
    with pytest.raises(ValueError, match="not aligned"):
        _cuda.reduce(data.data_ptr() + 1, data.data_ptr(), "float32", "sum", 1)

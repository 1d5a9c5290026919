"""The GPU's pack and unpack, run on the CPU, give torch's bits."""

import ctypes
from collections.abc import Callable, Sequence

import host_kernels
import numpy as np
import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(300)

TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COUNTS = (4096, 1, 0, 7, 4095, 4097, 16, 3 * 4096 + 5)
Run = Callable[..., int]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    library = host_kernels.library("host_pack", tmp_path_factory.mktemp("cuda"))
    library.host_pack.restype = ctypes.c_long

    def call(
        unpack: bool, tensors: Sequence[torch.Tensor], flat: torch.Tensor, scale: float
    ) -> int:
        def name(tensor: torch.Tensor) -> bytes:
            return str(tensor.dtype).removeprefix("torch.").encode()

        launches: int = library.host_pack(
            ctypes.c_bool(unpack),
            (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors)),
            (ctypes.c_size_t * len(tensors))(*(x.numel() for x in tensors)),
            ctypes.c_size_t(len(tensors)),
            name(tensors[0]),
            ctypes.c_void_p(flat.data_ptr()),
            name(flat),
            ctypes.c_float(scale),
        )
        return launches

    return call


def normal(rng: np.random.Generator, count: int, dtype: str, start: int) -> torch.Tensor:
    """Begins `start` elements behind a boundary of 16 bytes; some values overflow f16."""
    values = rng.standard_normal(count + start) * 10.0 ** rng.integers(-8, 6, count + start)
    return torch.from_numpy(values.astype("f4")).to(TORCH[dtype])[start:]


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("flat_dtype", TORCH)
@pytest.mark.parametrize("start", [0, 3])
def test_pack_and_unpack_have_the_bits_of_torch(
    run: Run, rng: np.random.Generator, dtype: str, flat_dtype: str, start: int
) -> None:
    tensors = [normal(rng, count, dtype, start * (k % 2)) for k, count in enumerate(COUNTS)]
    flat = normal(rng, sum(COUNTS), flat_dtype, start)
    assert run(False, tensors, flat, 0.3) == 1
    scale = torch.tensor(0.3, dtype=torch.float32)
    packed = (torch.cat(tensors).float() * scale).to(TORCH[flat_dtype])
    assert torch.equal(flat, packed)
    assert run(True, tensors, flat, 3.0) == 1
    unpacked = (packed.float() * 3.0).to(TORCH[dtype])
    for tensor, expected in zip(tensors, unpacked.split(COUNTS), strict=True):
        assert torch.equal(tensor, expected)


def test_any_number_of_tensors_is_packed(run: Run, rng: np.random.Generator) -> None:
    tensors = [normal(rng, int(n), "float32", 0) for n in rng.integers(0, 40, 700)]
    flat = torch.full((sum(x.numel() for x in tensors) + 1,), torch.nan)
    assert run(False, tensors, flat, 1.0) == 4
    assert torch.equal(flat[:-1], torch.cat(tensors))
    assert flat[-1].isnan()


def test_another_dtype_is_refused(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(False, [torch.zeros(3, dtype=torch.int32)], torch.zeros(3), 1.0) == -1
    assert "tensors must be of dtype float32, bfloat16 or float16" in capfd.readouterr().err

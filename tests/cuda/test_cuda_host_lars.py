"""The GPU's LARS, run on the CPU, beside its formula in f64."""

import numpy as np
import pytest
from host_optimizers import HostOptimizers

pytestmark = pytest.mark.timeout(300)

LR, M, DECAY, TRUST = 0.1, 0.9, 1e-2, 0.02
STEP = {"lr": LR, "momentum": M, "nesterov": True}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> HostOptimizers:
    return HostOptimizers(tmp_path_factory.mktemp("cuda"))


class Layer:
    """A tensor's arrays, which begin `start` elements behind a 16-byte boundary, and its trust."""

    def __init__(self, rng: np.random.Generator, count: int, start: int, trust: float) -> None:
        self.arrays = [place(rng.standard_normal(count), "f4", start) for _ in range(3)]
        self.trust = trust

    def tensor(self) -> tuple[int, int, int, int, float, float]:
        return (*(x.ctypes.data for x in self.arrays), self.arrays[0].size, DECAY, self.trust)

    def expected(self, scale: float = 1.0) -> list[np.ndarray]:
        """Parameters and momenta after a step, in f64."""
        w, u, g = (widen(x).astype("f8") for x in self.arrays)
        g = g * scale
        norms = np.linalg.norm(w), np.linalg.norm(g)
        adapted = self.trust > 0 and min(norms) > 0
        ratio = self.trust * norms[0] / (norms[1] + DECAY * norms[0]) if adapted else 1.0
        g = ratio * (g + DECAY * w)
        u = M * u + g
        return [w - LR * (g + M * u), u]


def place(values: np.ndarray, dtype: str, start: int) -> np.ndarray:
    room = np.zeros(values.size + 16 + start, dtype)
    skip = -room.ctypes.data % 16 // room.itemsize + start
    room[skip : skip + values.size] = values
    return room[skip : skip + values.size]


def widen(x: np.ndarray) -> np.ndarray:
    return (x.astype("u4") << 16).view("f4") if x.dtype == np.uint16 else x


def step(kernels: HostOptimizers, layers: list[Layer], dtype: str = "float32", scale=1.0) -> None:
    counts = [layer.arrays[0].size for layer in layers]
    workspace = np.full(kernels.lars_workspace(counts) + 1, np.nan, "f4")  # it needs no zeros
    tensors = [layer.tensor() for layer in layers]
    kernels.lars(tensors, dtype, workspace.ctypes.data, scale=scale, **STEP)
    assert np.isnan(workspace[-1])


def check(layers: list[Layer], expected: list[list[np.ndarray]]) -> None:
    for layer, want in zip(layers, expected, strict=True):
        for found, exact in zip(layer.arrays, want, strict=False):
            np.testing.assert_allclose(found, exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_each_tensor_takes_a_step_in_proportion_to_its_norm(
    kernels: HostOptimizers, rng: np.random.Generator, dtype: str, start: int
) -> None:
    sizes = (1, 7, 4096, 4097, 200_003, 0, 64)  # chunks of one: more than threads of a block
    layers = [
        Layer(rng, size, start, TRUST * k * (size != 4097)) for k, size in enumerate(sizes, 1)
    ]
    for layer in layers:
        gradient = layer.arrays[2]
        if dtype == "float16":
            layer.arrays[2] = place(gradient, "f2", start)
        elif dtype == "bfloat16":
            layer.arrays[2] = place(gradient.view("u4") >> 16, "u2", start)
    expected = [layer.expected(0.25) for layer in layers]
    step(kernels, layers, dtype, 0.25)
    check(layers, expected)


@pytest.mark.parametrize("zero", [0, 2], ids=["weights", "gradient"])
def test_a_zero_norm_gives_a_plain_step(
    kernels: HostOptimizers, rng: np.random.Generator, zero: int
) -> None:
    layers = [Layer(rng, 1000, 0, TRUST) for _ in range(2)]
    layers[1].arrays[zero][:] = 0
    expected = [layer.expected() for layer in layers]
    step(kernels, layers)
    check(layers, expected)


def test_a_network_of_many_tensors_has_the_same_bits_again(kernels: HostOptimizers) -> None:
    ends = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        layers = [
            Layer(rng, int(n), int(n) % 2, TRUST * (n % 3)) for n in rng.integers(0, 9000, 200)
        ]
        expected = [layer.expected() for layer in layers]
        step(kernels, layers)
        check(layers, expected)
        ends.append([x.tobytes() for layer in layers for x in layer.arrays])
    assert ends[0] == ends[1]

"""The GPU's SGD, run on the CPU, gives the numbers of allreduce.optim.SGD."""

import ctypes

import host_kernels
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from allreduce.optim import SGD  # noqa: E402

pytestmark = pytest.mark.timeout(300)

# Multiples of torch's vectors but for the last range, whose tail may be rounded in another order.
COUNTS = (4096, 64, 0, 64, 8192 + 32, 96, 7)
DECAYS = (1e-2, 0.0, 0.0, 0.0, 1e-2, 0.0, 1e-2)
RATES = (0.1, 0.2, 0.05)
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return host_kernels.library("host_sgd", tmp_path_factory.mktemp("cuda"))


def aligned(data: torch.Tensor, start: int) -> torch.Tensor:
    """A copy that lies `start` elements behind a 64-byte boundary."""
    room = torch.zeros(data.numel() + 64 + start, dtype=data.dtype)
    skip = -room.data_ptr() % 64 // data.element_size() + start
    room[skip : skip + data.numel()] = data
    return room[skip : skip + data.numel()]


class OnHost:
    """The flat arrays of the kernel."""

    def __init__(self, library: ctypes.CDLL, parameters: torch.Tensor, start: int) -> None:
        self.library, self.start = library, start
        self.parameters = aligned(parameters, start)
        self.momenta = aligned(torch.zeros_like(parameters), start)
        self.copy = aligned(torch.zeros_like(parameters, dtype=torch.bfloat16), start)

    def step(
        self,
        gradients: torch.Tensor,
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        absorbed: bool = False,
        correction: float = 1.0,
        scale: float = 1.0,
        counts: tuple[int, ...] = COUNTS,
        decays: tuple[float, ...] = DECAYS,
    ) -> int:
        gradients = aligned(gradients, self.start)
        status: int = self.library.host_sgd(
            *(ctypes.c_void_p(x.data_ptr()) for x in (self.parameters, self.momenta, gradients)),
            str(gradients.dtype).removeprefix("torch.").encode(),
            (ctypes.c_size_t * len(counts))(*counts),
            (ctypes.c_double * len(decays))(*decays),
            ctypes.c_size_t(len(counts)),
            *(ctypes.c_double(x) for x in (lr, momentum, correction, scale)),
            ctypes.c_bool(nesterov),
            ctypes.c_bool(absorbed),
            ctypes.c_void_p(self.copy.data_ptr()),
        )
        return status


def optimizer_of(parameters: torch.Tensor, **options: object) -> tuple[SGD, list[torch.Tensor]]:
    params = [torch.nn.Parameter(p.clone()) for p in parameters.split(COUNTS)]
    groups = [
        {"params": [p], "weight_decay": decay} for p, decay in zip(params, DECAYS, strict=True)
    ]
    return SGD(groups, lr=1.0, **options), params


def normal(rng: np.random.Generator, count: int = sum(COUNTS)) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(count).astype("f4"))


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("form", ["reference", "absorbed"])
def test_the_numbers_are_those_of_the_optimizer(
    library: ctypes.CDLL,
    rng: np.random.Generator,
    form: str,
    nesterov: bool,
    momentum: float,
    dtype: str,
    start: int,
) -> None:
    parameters = normal(rng)
    kernel = OnHost(library, parameters, start)
    optimizer, params = optimizer_of(parameters, momentum=momentum, nesterov=nesterov, form=form)
    before = RATES[0]
    for lr in RATES:
        gradients = normal(rng).to(TORCH[dtype])
        for group in optimizer.param_groups:
            group["lr"] = lr
        for param, gradient in zip(params, gradients.float().split(COUNTS), strict=True):
            param.grad = gradient
        optimizer.step()
        kernel.step(
            gradients,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            absorbed=form == "absorbed",
            correction=lr / before,
        )
        before = lr
    expected = torch.cat([p.detach() for p in params])
    if torch.backends.cpu.get_cpu_capability() in (
        "AVX2",
        "AVX512",
    ):  # those have fused multiply-add
        exact = slice(0, sum(COUNTS[:-1]))
        assert torch.equal(kernel.parameters[exact], expected[exact])
    torch.testing.assert_close(kernel.parameters, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(kernel.copy, kernel.parameters.bfloat16())


def test_the_gradient_is_scaled_first(library: ctypes.CDLL, rng: np.random.Generator) -> None:
    parameters, gradients = normal(rng), normal(rng)
    scaled, divided = OnHost(library, parameters, 0), OnHost(library, parameters, 0)
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
    scaled.step(gradients, scale=0.125, **options)
    divided.step(gradients / 8, **options)
    assert torch.equal(scaled.parameters, divided.parameters)
    assert torch.equal(scaled.momenta, divided.momenta)


def test_ranges_that_fill_several_launches_are_all_updated(
    library: ctypes.CDLL, rng: np.random.Generator
) -> None:
    counts = tuple(int(n) for n in rng.integers(0, 30, 500))
    decays = tuple(float(x) for x in rng.random(500))
    parameters = normal(rng, sum(counts))
    kernel = OnHost(library, parameters, 1)
    gradients = torch.zeros_like(parameters)
    kernel.step(gradients, lr=0.5, momentum=0, nesterov=False, counts=counts, decays=decays)
    decay = torch.tensor(np.repeat(np.float32(decays), counts))
    assert torch.equal(kernel.parameters, parameters - parameters * decay * 0.5)


def test_another_dtype_is_refused(
    library: ctypes.CDLL, rng: np.random.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel = OnHost(library, normal(rng), 0)
    assert kernel.step(normal(rng).int(), lr=0.1, momentum=0.9, nesterov=True) == -1
    assert "gradients must be of dtype float32" in capfd.readouterr().err

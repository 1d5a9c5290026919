"""The GPU's SGD, run on the CPU, gives the numbers of allreduce.optim.SGD."""

import itertools

import numpy as np
import pytest
from host_optimizers import HostOptimizers

torch = pytest.importorskip("torch")

from allreduce.optim import SGD  # noqa: E402

pytestmark = pytest.mark.timeout(300)

# Multiples of torch's vectors but for the last range, whose tail may be rounded in another order.
COUNTS = (4096, 64, 0, 64, 8192 + 32, 96, 7)
DECAYS = (1e-2, 0.0, 0.0, 0.0, 1e-2, 0.0, 1e-2)
RATES = (0.1, 0.2, 0.05)
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> HostOptimizers:
    return HostOptimizers(tmp_path_factory.mktemp("cuda"))


def aligned(data: torch.Tensor, start: int) -> torch.Tensor:
    """A copy that lies `start` elements behind a 64-byte boundary."""
    room = torch.zeros(data.numel() + 64 + start, dtype=data.dtype)
    skip = -room.data_ptr() % 64 // data.element_size() + start
    room[skip : skip + data.numel()] = data
    return room[skip : skip + data.numel()]


class OnHost:
    """Flat arrays, whose parts are the kernel's tensors."""

    def __init__(self, kernels: HostOptimizers, parameters: torch.Tensor, start: int) -> None:
        self.kernels, self.start = kernels, start
        self.parameters = aligned(parameters, start)
        self.momenta = aligned(torch.zeros_like(parameters), start)
        self.copy = aligned(torch.zeros_like(parameters, dtype=torch.bfloat16), start)

    def step(
        self,
        gradients: torch.Tensor,
        *,
        corrections: tuple[float, ...] = (),
        counts: tuple[int, ...] = COUNTS,
        decays: tuple[float, ...] = DECAYS,
        **step: object,
    ) -> None:
        gradients = aligned(gradients, self.start)
        begins = itertools.accumulate(counts, initial=0)
        arrays = (self.parameters, self.momenta, gradients)
        tensors = [
            (*(x.data_ptr() + begin * x.element_size() for x in arrays), count, decay, correction)
            for begin, count, decay, correction in zip(
                begins, counts, decays, corrections or (1.0,) * len(counts), strict=False
            )
        ]
        dtype = str(gradients.dtype).removeprefix("torch.")
        self.kernels.sgd(tensors, dtype, copy=self.copy.data_ptr(), **step)


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
    kernels: HostOptimizers,
    rng: np.random.Generator,
    form: str,
    nesterov: bool,
    momentum: float,
    dtype: str,
    start: int,
) -> None:
    parameters = normal(rng)
    kernel = OnHost(kernels, parameters, start)
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
            form=form,
            corrections=(lr / before,) * len(COUNTS),
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


def test_the_gradient_is_scaled_first(kernels: HostOptimizers, rng: np.random.Generator) -> None:
    parameters, gradients = normal(rng), normal(rng)
    scaled, divided = OnHost(kernels, parameters, 0), OnHost(kernels, parameters, 0)
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
    scaled.step(gradients, scale=0.125, **options)
    divided.step(gradients / 8, **options)
    assert torch.equal(scaled.parameters, divided.parameters)
    assert torch.equal(scaled.momenta, divided.momenta)


def test_ranges_that_fill_several_launches_are_all_updated(
    kernels: HostOptimizers, rng: np.random.Generator
) -> None:
    counts = tuple(int(n) for n in rng.integers(0, 30, 500))  # neighbours differ in their decay
    decays = tuple(float(x) for x in rng.random(500))
    parameters = normal(rng, sum(counts))
    kernel = OnHost(kernels, parameters, 1)
    gradients = torch.zeros_like(parameters)
    kernel.step(gradients, lr=0.5, momentum=0, nesterov=False, counts=counts, decays=decays)
    decay = torch.tensor(np.repeat(np.float32(decays), counts))
    assert torch.equal(kernel.parameters, parameters - parameters * decay * 0.5)


def test_each_tensor_has_its_own_arrays_and_correction(
    kernels: HostOptimizers, rng: np.random.Generator
) -> None:
    corrections = tuple(float(x) for x in rng.random(len(COUNTS)))
    parameters, gradients = normal(rng), normal(rng)
    step = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "form": "absorbed"}
    flat = OnHost(kernels, parameters, 0)
    flat.momenta[:] = parameters
    flat.step(gradients, corrections=corrections, **step)

    def scattered(x: torch.Tensor, start: int) -> list[torch.Tensor]:
        return [aligned(part, start + k) for k, part in enumerate(x.split(COUNTS))]

    arrays = [scattered(parameters, 0), scattered(parameters, 1), list(gradients.split(COUNTS))]
    rows = zip(zip(*arrays, strict=True), COUNTS, DECAYS, corrections, strict=True)
    tensors = [(*(x.data_ptr() for x in at), *numbers) for at, *numbers in rows]
    kernels.sgd(tensors, "float32", **step)
    assert torch.equal(torch.cat(arrays[0]), flat.parameters)
    assert torch.equal(torch.cat(arrays[1]), flat.momenta)


def test_tensors_that_adjoin_in_all_arrays_are_one_range(kernels: HostOptimizers) -> None:
    first, behind = (0, 4096, 8192, 10, 0.1, 1.0), (40, 4136, 8232, 10, 0.1, 1.0)
    assert kernels.ranges([first, behind, (80, 4176, 8272, 10, 0.1, 1.0)]) == 1
    assert kernels.ranges([first, (40, 4136, 8232, 10, 0.2, 1.0)]) == 2
    for other in range(3):
        moved = tuple(x + 64 * (k == other) for k, x in enumerate(behind))
        assert kernels.ranges([first, moved]) == (1 if other == 1 else 2)  # no momentum there


def test_another_dtype_is_refused(
    kernels: HostOptimizers, rng: np.random.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel = OnHost(kernels, normal(rng), 0)
    with pytest.raises(ValueError, match="host_sgd"):
        kernel.step(normal(rng).int(), lr=0.1, momentum=0.9, nesterov=True)
    assert "gradients must be of dtype float32" in capfd.readouterr().err

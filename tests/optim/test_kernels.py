"""The steps that csrc/cuda's kernels take for SGD and LARS: chosen, handed over, and right.

The kernels are their block bodies on the CPU, which take the place of `allreduce._cuda` here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from host_optimizers import HostOptimizers
from torch import Tensor, nn

from allreduce.commands import native_build
from allreduce.optim import LARS, SGD, _kernels

pytestmark = pytest.mark.timeout(300)

RATES = (0.1, 0.2, 0.05, 0.05, 0.3)
RESTS = {1: (1, 2), 3: (0,)}  # the steps in which a parameter has no gradient
# Multiples of torch's vectors, whose tails may be rounded in another order.
SHAPES = ((64, 32, 3, 3), (64,), (128, 65), (192,), (4096 * 2 + 64,), (32, 2, 1, 1))
FUSES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


class Other(Tensor):
    """Whose address may say nothing."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostOptimizers:
    return HostOptimizers(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def kernels(host: HostOptimizers, monkeypatch: pytest.MonkeyPatch) -> HostOptimizers:
    """The CPU's tensors go to the kernels, too."""
    monkeypatch.setattr(_kernels, "kernels_on", lambda device: host)
    monkeypatch.setattr(host, "tensors", 0)
    return host


def network(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(5)
    values = [torch.randn(shape, dtype=torch.float32) for shape in SHAPES]
    values[0] = values[0].to(memory_format=torch.channels_last)
    return [nn.Parameter(value.to(dtype)) for value in values]


def gradients_in_a_bucket(params: list[nn.Parameter], step: int) -> Iterator[Tensor | None]:
    """Views of one flat array in the parameters' own order of elements; None where one rests."""
    generator = torch.Generator().manual_seed(step)
    flat = torch.randn(sum(p.numel() for p in params), generator=generator).to(params[0].dtype)
    ends = itertools.accumulate(p.numel() for p in params)
    for index, (param, end) in enumerate(zip(params, ends, strict=True)):
        part = flat[end - param.numel() : end]
        rests = step in RESTS.get(index, ())
        yield None if rests else part.as_strided(param.shape, param.stride(), part.storage_offset())


def trained(
    make: Callable[[list[dict[str, object]]], SGD], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Parameters and momenta after a step at each of the rates."""
    params = network(dtype)
    optimizer = make(
        [
            {"params": params[::2], "weight_decay": 0.01},
            {"params": params[1::2], "weight_decay": 0.0},
        ]
    )
    for step, lr in enumerate(RATES):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for param, gradient in zip(params, gradients_in_a_bucket(params, step), strict=True):
            param.grad = gradient
        optimizer.step()
    momenta = [state["momentum"] for state in optimizer.state.values() if "momentum" in state]
    return [t.detach() for t in (*params, *momenta)]


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("form", ["reference", "absorbed"])
def test_sgd_has_the_bits_of_torch_on_the_cpu(
    host: HostOptimizers,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    nesterov: bool,
    momentum: float,
) -> None:
    def make(groups: list[dict[str, object]]) -> SGD:
        return SGD(groups, 1.0, momentum, nesterov, form=form, gradient_scale=0.3)

    expected = trained(make)
    monkeypatch.setattr(_kernels, "kernels_on", lambda device: host)
    monkeypatch.setattr(host, "tensors", 0)
    found = trained(make)
    assert host.tensors == len(SHAPES) * len(RATES) - sum(map(len, RESTS.values()))
    for ours, theirs in zip(found, expected, strict=True):
        if FUSES:
            assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_lars_follows_its_f64_self_and_has_the_same_bits_again(kernels: HostOptimizers) -> None:
    def make(groups: list[dict[str, object]]) -> SGD:
        groups[0]["trust"] = 0.02
        return LARS(groups, 1.0, trust=0.01, gradient_scale=0.25)

    exact = trained(make, torch.float64)  # by torch: the kernels take f32
    assert kernels.tensors == 0
    found, again = trained(make), trained(make)
    assert kernels.tensors > 0
    for ours, same, want in zip(found, again, exact, strict=True):
        assert torch.equal(ours, same)
        torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", [SGD, LARS])
def test_what_the_kernels_do_not_take_is_left_to_torch(
    kernels: HostOptimizers, kind: type[SGD]
) -> None:
    fits, turned, wide, hole = (nn.Parameter(torch.ones(64, 64)) for _ in range(4))
    single, half = nn.Parameter(torch.ones(8, 1)), nn.Parameter(torch.ones(8).half())
    fits.grad = torch.full((64, 64), 0.5)
    turned.grad = torch.arange(4096.0).reshape(64, 64).t()  # the other order of elements
    wide.data = wide.data.double()
    wide.grad = torch.full((64, 64), 0.5, dtype=torch.float64)
    hole.data = torch.ones(64, 128)[:, ::2]
    hole.grad = torch.full((64, 128), 0.5)[:, ::2]
    single.grad = torch.full((1, 8), 0.5).t()  # other strides, but the same order
    half.grad = torch.full((8,), 0.5).half()
    other = nn.Parameter(torch.ones(8).as_subclass(Other))
    other.grad = torch.full((8,), 0.5)
    params = [fits, turned, wide, hole, single, half, other]
    kind(params, lr=1.0, momentum=0.0, weight_decay=0.0).step()
    assert kernels.tensors == 2
    for param in (fits, wide, hole, single, half, other):
        assert bool((param < 1).all())
    change = (1 - turned).detach()
    torch.testing.assert_close(change / change.sum(), turned.grad / turned.grad.sum())


def test_a_momentum_in_another_order_is_left_to_torch(kernels: HostOptimizers) -> None:
    param = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    param.grad = torch.zeros(2, 3)
    optimizer = SGD([param], lr=1.0, nesterov=False, weight_decay=0.0)
    momentum = torch.arange(6.0).reshape(3, 2).t()
    optimizer.state[param]["momentum"] = momentum.clone(memory_format=torch.preserve_format)
    optimizer.step()
    assert kernels.tensors == 0
    torch.testing.assert_close(param.detach(), torch.arange(6.0).reshape(2, 3) - 0.9 * momentum)


def new_gradient(param: Tensor, optimizer: SGD) -> None:
    param.grad = 2 * param.grad


def gradient_in_another_order(param: Tensor, optimizer: SGD) -> None:
    param.grad = 2 * param.grad.t().contiguous().t()


def gradient_elsewhere(param: Tensor, optimizer: SGD) -> None:
    param.grad.data = 2 * param.grad.data


def no_gradient(param: Tensor, optimizer: SGD) -> None:
    param.grad = None


def parameter_elsewhere(param: Tensor, optimizer: SGD) -> None:
    param.data = param.data.clone()


def parameter_in_another_order(param: Tensor, optimizer: SGD) -> None:
    param.data = param.data.t().contiguous().t()


def new_momentum(param: Tensor, optimizer: SGD) -> None:
    optimizer.state[param]["momentum"] = torch.ones_like(param)


def no_momentum(param: Tensor, optimizer: SGD) -> None:
    optimizer.state.clear()


def loaded_state(param: Tensor, optimizer: SGD) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def another_parameter(param: Tensor, optimizer: SGD) -> None:
    new = nn.Parameter(param.detach().clone())
    new.grad = 2 * param.grad
    optimizer.param_groups[0]["params"][0] = new


def another_parameter_of_this_memory(param: Tensor, optimizer: SGD) -> None:
    new = nn.Parameter(param.detach().t())
    new.grad = 2 * param.grad
    optimizer.param_groups[0]["params"][0] = new
    optimizer.state[new] = optimizer.state[param]


def momentum_off(param: Tensor, optimizer: SGD) -> None:
    optimizer.param_groups[0]["momentum"] = 0.0


def one_of_another_type(param: Tensor, optimizer: SGD) -> None:
    param.grad = (2 * param.grad).as_subclass(Other)


def momentum_in_another_order(param: Tensor, optimizer: SGD) -> None:
    state = optimizer.state[param]
    state["momentum"] = state["momentum"].t().contiguous().t()


@pytest.fixture(params=[True, False], ids=["read by the core", "read by Python"])
def read_by_core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether torch lets the core read its tensors, as torch 2.9 does not."""
    if not request.param:
        monkeypatch.setattr(_kernels, "_reader", lambda: None)
    elif _kernels._reader() is None:
        pytest.skip("this torch has no exchange API of DLPack")
    return bool(request.param)


@pytest.mark.parametrize("kind", [SGD, LARS])
@pytest.mark.parametrize(
    "change",
    [
        *(new_gradient, gradient_in_another_order, gradient_elsewhere, no_gradient),
        *(parameter_elsewhere, parameter_in_another_order),
        *(another_parameter, another_parameter_of_this_memory, one_of_another_type),
        *(new_momentum, momentum_in_another_order, no_momentum, loaded_state, momentum_off),
    ],
)
def test_a_step_sees_what_has_changed_since_the_last(
    read_by_core: bool,
    kernels: HostOptimizers,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[SGD],
    change: Callable[[Tensor, SGD], None],
) -> None:
    ends = []
    for ours in (True, False):
        if not ours:
            monkeypatch.setattr(_kernels, "kernels_on", lambda device: None)
        torch.manual_seed(6)
        first, second = params = [nn.Parameter(torch.randn(64, 64)) for _ in range(2)]
        optimizer = kind(params, lr=0.1)
        for step in range(4):
            if step == 0:
                first.grad, second.grad = torch.randn(64, 64), torch.randn(64, 64)
            if step == 2:
                change(first, optimizer)
            optimizer.step()
        ends.append([*optimizer.param_groups[0]["params"], second])
    assert kernels.tensors >= 6  # but for what the kernels do not take
    for by_kernels, by_torch in zip(*ends, strict=True):
        torch.testing.assert_close(by_kernels, by_torch, rtol=1e-5, atol=1e-6)


def test_gradients_that_are_made_anew_each_step_are_followed(kernels: HostOptimizers) -> None:
    ends = []
    for set_to_none in (True, False):
        torch.manual_seed(7)
        layers = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 8))
        optimizer = SGD(layers.parameters(), lr=0.01)
        kept = []  # so that no new gradient lies where the last one did
        for _ in range(4):
            optimizer.zero_grad(set_to_none=set_to_none)
            layers(torch.ones(16, 32)).square().sum().backward()
            kept += [p.grad for p in layers.parameters()]
            optimizer.step()
        ends.append([p.detach() for p in layers.parameters()])
    assert kernels.tensors == 2 * 4 * 4
    for anew, in_place in zip(*ends, strict=True):
        assert torch.equal(anew, in_place)


def test_a_parameter_of_another_size_than_its_gradient_is_not_written(
    read_by_core: bool, kernels: HostOptimizers
) -> None:
    param = nn.Parameter(torch.ones(64))
    param.grad = torch.ones(64)
    param.data = torch.ones(128)
    with pytest.raises(RuntimeError, match="size"):
        SGD([param], lr=0.1).step()
    assert kernels.tensors == 0
    assert bool((param == 1).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [SGD, LARS])
def test_gradients_may_have_16_bits(
    read_by_core: bool, kernels: HostOptimizers, kind: type[SGD], dtype: torch.dtype
) -> None:
    param = nn.Parameter(torch.ones(64, 2))
    (batch,), others = _kernels.split([param], [torch.full((64, 2), 0.5).to(dtype)], [])
    assert not others
    assert batch.dtype == str(dtype).removeprefix("torch.")
    step = {"lr": 1.0, "momentum": 0.0, "nesterov": True, "scale": 0.5}
    if kind is SGD:
        batch.sgd(0.0, [1.0], form="reference", **step)
    else:
        batch.lars(0.0, [0.25], **step)
    assert bool((param == 0.75).all())


def test_autograd_sees_that_a_step_has_written(kernels: HostOptimizers) -> None:
    param = nn.Parameter(torch.ones(64))
    loss = (param * param).sum()
    param.grad = torch.ones(64)
    SGD([param], lr=0.1).step()
    assert kernels.tensors == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_are_scaled_before_all_else_on_torch_too() -> None:
    ends = []
    for scale, factor in ((0.125, 1.0), (1.0, 0.125)):
        param = nn.Parameter(torch.ones(64, 2))
        optimizer = LARS([param], lr=0.1, weight_decay=0.1, gradient_scale=scale)
        param.grad = torch.arange(128.0).reshape(64, 2) * factor
        before = param.grad.clone()
        optimizer.step()
        assert torch.equal(param.grad, before)
        ends.append(param.detach())
    assert torch.equal(*ends)


def test_a_state_from_before_the_scale_is_loaded() -> None:
    param = nn.Parameter(torch.ones(4))
    optimizer = SGD([param], lr=0.1)
    state = optimizer.state_dict()
    del state["param_groups"][0]["gradient_scale"]
    optimizer.load_state_dict(state)
    param.grad = torch.ones(4)
    optimizer.step()
    assert optimizer.param_groups[0]["gradient_scale"] == 1.0


def test_only_cuda_tensors_go_to_the_kernels() -> None:
    assert _kernels.kernels_on(torch.device("cpu")) is None
    assert _kernels.kernels_on(torch.device("meta")) is None


def test_the_built_kernels_take_what_a_step_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is launched for tensors without elements, so no GPU is needed."""
    native_build.require_core()
    pytest.importorskip("allreduce._cuda", reason="built without CUDA")
    built = _kernels.kernels_on(torch.device("cuda", 0))
    assert built is not None
    monkeypatch.setattr(_kernels, "kernels_on", lambda device: built)  # not that the CPU has any
    for kind, form in itertools.product((SGD, LARS), ("reference", "absorbed")):
        param = nn.Parameter(torch.zeros(0, 3))
        param.grad = torch.zeros(0, 3)
        batches, others = _kernels.split([param], [param.grad], [])
        assert len(batches) == 1
        assert not others
        optimizer = kind([param], lr=0.1) if kind is LARS else kind([param], lr=0.1, form=form)
        optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("kind", [SGD, LARS])
def test_a_step_on_the_gpu_follows_the_cpu(kind: type[SGD]) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        params = [nn.Parameter(p.detach().to(device)) for p in network()]
        optimizer = kind(params, lr=0.1)
        for step in range(3):
            gradients = gradients_in_a_bucket(network(), step)
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = None if gradient is None else gradient.to(device)
            optimizer.step()
        ends.append([p.detach().cpu() for p in params])
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

"""wire_dtype: packing and unpacking, and in training (programs/wire.py)."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from allreduce.torch.ddp import cast_buckets

PROGRAM = "wire.py"
LAYOUTS = [(2, 1), (3, 1), (4, 2)]

pytestmark = pytest.mark.timeout(110)

SHAPES = [(3, 5), (7,), (), (2, 3, 4, 4), (0,)]


def test_wire(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)


def laid_out(dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """A bucket, its places and gradients; one of each is in channels-last order."""
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(shape, generator=generator) for shape in SHAPES]
    gradients[3] = gradients[3].to(memory_format=torch.channels_last)
    flat = torch.full((sum(g.numel() for g in gradients) + 3,), 9.0, dtype=dtype)
    places, begin = [], 0
    for g in gradients:
        places.append(flat[begin : begin + g.numel()].as_strided(g.size(), g.stride()))
        begin += g.numel()
    return flat, places, gradients


def in_memory(address: int, count: int, dtype: str) -> torch.Tensor:
    kind = getattr(torch, dtype)
    memory = (ctypes.c_char * (count * kind.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=kind) if count else torch.empty(0, dtype=kind)


def kernels(calls: list[str]) -> SimpleNamespace:
    """What allreduce._cuda has, on the CPU's memory."""

    def move(name, tensors, dtype, flat, flat_dtype, scale, stream) -> None:
        calls.append(name)
        assert stream == 0
        begin = 0
        for address, count in tensors:
            tensor = in_memory(address, count, dtype)
            place = in_memory(flat, begin + count, flat_dtype)[begin:]
            if name == "pack":
                place.copy_(tensor * scale)
            else:
                tensor.copy_(place.float() * scale)
            begin += count

    return SimpleNamespace(
        pack=lambda *args, scale=1.0, stream=0: move("pack", *args, scale, stream),
        unpack=lambda *args, scale=1.0, stream=0: move("unpack", *args, scale, stream),
    )


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_and_unpacked(monkeypatch: pytest.MonkeyPatch, dtype, fused: bool) -> None:
    calls: list[str] = []
    monkeypatch.setattr(cast_buckets, "_kernels", lambda _: kernels(calls) if fused else None)
    flat, places, gradients = laid_out(dtype)
    cast_buckets.pack(flat, places, gradients, 0.3)
    for place, gradient in zip(places, gradients, strict=True):
        assert torch.equal(place, (gradient * 0.3).to(dtype))
    assert (flat[-3:] == 9).all()
    found = [torch.empty_like(g) for g in gradients]
    cast_buckets.unpack(flat, places, found)
    assert all(torch.equal(g, place.float()) for g, place in zip(found, places, strict=True))
    assert calls == (["pack", "unpack"] if fused else [])


@pytest.mark.parametrize("how", ["none", "strides"])
def test_what_a_kernel_cannot_take_goes_by_torch(monkeypatch: pytest.MonkeyPatch, how) -> None:
    calls: list[str] = []
    monkeypatch.setattr(cast_buckets, "_kernels", lambda _: kernels(calls))
    flat, places, gradients = laid_out(torch.bfloat16)
    given: list[torch.Tensor | None] = list(gradients)
    given[0] = None if how == "none" else gradients[0].t().contiguous().t()
    cast_buckets.pack(flat, places, given, 2.0)
    expected = torch.zeros(3, 5) if how == "none" else 2 * gradients[0]
    assert torch.equal(places[0], expected.bfloat16())
    cast_buckets.unpack(flat, places, given)
    assert how == "none" or torch.equal(given[0], expected.bfloat16().float())
    assert torch.equal(given[1], places[1].float())
    assert calls == []

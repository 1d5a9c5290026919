"""Cases of ddp_cases.py: outputs, modules, what changes after wrapping, and copies."""

import copy
import io
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from ddp_case_helpers import STEPS, Data, Wrap, grads, net, train, weights, x
from harness import RANK
from torch import Tensor, nn
from torch.nn.utils import (
    parameters_to_vector,
    parametrizations,
    vector_to_parameters,
)

# Outputs.

Named = namedtuple("Named", "logits other")


class Held:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tuple": (lambda y: (y, None), lambda o: o[0]),
    "dict": (lambda y: {"a": [y]}, lambda o: o["a"][0]),
    "namedtuple": (lambda y: Named(y, 1), lambda o: o.logits),
    "dataclass": (Data, lambda o: o.logits),
    "object": (Held, lambda o: o.logits),
    "of_which_one_is_used": (lambda y: (y, y * 2), lambda o: o[1]),
}


def with_output(wrap: Wrap, pack: Any, unpack: Any) -> list[Tensor]:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = net()

        def forward(self, x: Tensor) -> Any:
            return pack(self.layers(x))

    model = wrap(Packed())
    for seed in range(STEPS):
        unpack(model(x(seed))).square().mean().backward()
    return grads(model)


def case_loss_on_the_module(wrap: Wrap) -> list[Tensor]:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.loss = net(), None

        def forward(self, x: Tensor) -> None:
            self.loss = self.layers(x).square().mean()

    model = wrap(Aside())
    model(x())
    model.module.loss.backward()
    return grads(model)


# Modules.


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Words(nn.Module):
    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words, self.head = nn.Embedding(20, 6, sparse=sparse), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words((x.abs() * 7).long() % 20))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lstm, self.head = nn.LSTM(6, 5, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[None])


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = net().requires_grad_(False)
        self.down, self.up = nn.Linear(6, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Picture(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(1)
        layers = [nn.Unflatten(1, (2, 3, 1)), nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(12, 3))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.scale = net(), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.scale


class Cast(nn.Module):
    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.layers = net()
        for layer, dtype in zip(self.layers, dtypes, strict=False):
            layer.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            dtype = next((p.dtype for p in layer.parameters()), x.dtype)
            x = layer(x.to(dtype))
        return x.float()


BF16, F64, C64 = torch.bfloat16, torch.float64, torch.complex64


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Parameter(torch.randn(6, 3, dtype=C64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(C64) @ self.first).abs()


def normed(how: Callable[[nn.Module], object]) -> nn.Module:
    module = net()
    how(module[0])
    return module


MODULES: dict[str, Callable[[], nn.Module]] = {
    "tied_weights": Tied,
    "embedding": Words,
    "embedding_sparse": lambda: Words(sparse=True),
    "lstm": Recurrent,
    "transformer": Attention,
    "adapter": Adapted,
    "batch_norm": Picture,
    "channels_last": lambda: Picture().to(memory_format=torch.channels_last),
    "sync_batch_norm": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(Picture()),
    "scalar": Scaled,
    "bf16": lambda: Cast(BF16, BF16, BF16),
    "f64": lambda: Cast(F64, F64, F64),
    "mixed_dtypes": lambda: Cast(BF16, torch.float32, F64),
    "complex": Complex,
    "weight_norm": lambda: normed(parametrizations.weight_norm),
    "spectral_norm": lambda: normed(parametrizations.spectral_norm),
    "lazy": lambda: nn.LazyLinear(3),
    "without_parameters": nn.Tanh,
}


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.always, self.sometimes = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        y = self.always(x)
        return self.sometimes(y) if both else y


def branches(wrap: Wrap, both: bool, **more: Any) -> list[Tensor]:
    model = wrap(Branches(), **more)
    for seed in range(2):
        model.zero_grad()
        model(x(seed), both).square().mean().backward()
    return grads(model)


def case_unused_on_one_rank(wrap: Wrap) -> list[Tensor]:
    return branches(wrap, RANK == 0, find_unused_parameters=True)


def case_unused_on_all_ranks(wrap: Wrap) -> list[Tensor]:
    return branches(wrap, False, find_unused_parameters=True)


def case_unused_unsaid(wrap: Wrap) -> list[Tensor]:
    return branches(wrap, False)


def case_frozen(wrap: Wrap) -> list[Tensor]:
    module = net()
    module[0].requires_grad_(False)
    return train(wrap(module))


def case_frozen_later(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    train(model, steps=range(1))
    model.module[0].requires_grad_(False)
    return train(model, steps=range(1, 3))


def case_two_wrappers_in_one_backward(wrap: Wrap) -> list[Tensor]:
    models = [wrap(net()), wrap(Tied())]
    (models[0](x()).square().mean() + models[1](x()).square().mean()).backward()
    return [g for model in models for g in grads(model)]


def case_chained_wrappers(wrap: Wrap) -> list[Tensor]:
    models = [wrap(Tied()), wrap(net())]
    models[1](models[0](x())).square().mean().backward()
    return [g for model in models for g in grads(model)]


def gan(wrap: Wrap, *, toggled: bool) -> list[Tensor]:
    made, judge = wrap(Tied()), wrap(net())
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (made, judge)]
    for seed in range(2):
        judge.requires_grad_(True)
        optimizers[1].zero_grad()
        (judge(x(seed)).mean() - judge(made(x(seed)).detach()).mean()).backward()
        optimizers[1].step()
        judge.requires_grad_(not toggled)
        optimizers[0].zero_grad()
        judge(made(x(seed))).mean().backward()
        optimizers[0].step()
    return weights(made) + weights(judge)


def case_gan(wrap: Wrap) -> list[Tensor]:
    return gan(wrap, toggled=False)


def case_gan_toggled(wrap: Wrap) -> list[Tensor]:
    return gan(wrap, toggled=True)


def case_functional_call(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    own = dict(model.named_parameters())
    torch.func.functional_call(model, own, (x(),)).square().mean().backward()
    return grads(model)


# Changes after wrapping.


def case_state_dict_round_trip(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    return train(model)


def case_state_dict_assigned(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}, assign=True)
    return train(model)


def case_unfrozen_later(wrap: Wrap) -> list[Tensor]:
    module = net()
    module[0].requires_grad_(False)
    model = wrap(module)
    module[0].requires_grad_(True)
    return train(model)


def case_layer_replaced(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    torch.manual_seed(2)
    model.module[2] = nn.Linear(8, 3)
    return train(model)


def case_storage_swapped(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    for p in model.parameters():
        p.data = p.data + 1
    return train(model)


def case_vector_to_parameters(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    vector_to_parameters(parameters_to_vector(model.parameters()) * 2, model.parameters())
    return train(model)


def case_channels_last_later(wrap: Wrap) -> list[Tensor]:
    torch.manual_seed(1)
    model = wrap(nn.Sequential(nn.Unflatten(1, (2, 3, 1)), nn.Conv2d(2, 4, 1)))
    model(x()).square().mean().backward()
    model.to(memory_format=torch.channels_last)
    model.zero_grad()
    model(x(1)).square().mean().backward()
    return grads(model)


def case_double_later(wrap: Wrap) -> list[Tensor]:
    model = wrap(Cast())
    model(x()).square().mean().backward()
    model.double()
    model.zero_grad()
    model(x(1)).square().mean().backward()
    return grads(model)


# Copies.


def case_deepcopy(wrap: Wrap) -> list[Tensor]:
    twin = copy.deepcopy(wrap(net(), default_group=True))
    return train(twin)


def case_averaged_model(wrap: Wrap) -> list[Tensor]:
    model = wrap(net(), default_group=True)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(2):
        train(model, steps=range(1))
        averaged.update_parameters(model)
    return weights(averaged)


def case_saved_whole(wrap: Wrap) -> list[Tensor]:
    model = wrap(net(), default_group=True)
    torch.save(model, io.BytesIO())
    return train(model)


def case_cross_entropy(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    F.cross_entropy(model(x()), torch.arange(5) % 4).backward()
    return grads(model)


def families() -> dict[str, Callable[[Wrap], list[Tensor]]]:
    """The cases of tables, by name."""
    found: dict[str, Callable[[Wrap], list[Tensor]]] = {}
    for name, build in MODULES.items():
        found[f"module_{name}"] = lambda wrap, build=build: train(wrap(build()))
    for name, pair in OUTPUTS.items():
        found[f"output_{name}"] = lambda wrap, pair=pair: with_output(wrap, *pair)
    return found

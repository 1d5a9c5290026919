"""Cases of ddp_cases.py: training loops, graphs and checkpointing."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from ddp_case_helpers import STEPS, Data, Wrap, grads, net, train, weights, x
from harness import RANK
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.utils import (
    clip_grad_norm_,
    clip_grad_value_,
)
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "sgd_momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, foreach=False),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
}
BETWEEN: dict[str, Callable[[nn.Module], object]] = {
    "clip_norm": lambda m: clip_grad_norm_(m.parameters(), 0.01),
    "clip_norm_foreach": lambda m: clip_grad_norm_(m.parameters(), 0.01, foreach=True),
    "clip_value": lambda m: clip_grad_value_(m.parameters(), 0.001),
    "gradients_scaled_in_place": lambda m: [p.grad.mul_(0.5) for p in m.parameters()],
    "gradients_replaced": lambda m: [setattr(p, "grad", p.grad * 2) for p in m.parameters()],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "find_unused_parameters": {"find_unused_parameters": True},
    "static_graph": {"static_graph": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "no_bucket_view": {"gradient_as_bucket_view": False},
    "small_buckets": {"bucket_cap_mb": 0.0001},
    "large_buckets": {"bucket_cap_mb": 100},
    "no_init_sync": {"init_sync": False},
    "device_ids_none": {"device_ids": None},
}


# Training loops.


def case_lbfgs(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x()).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return grads(model)


def case_one_cycle_and_clipping(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=STEPS + 1)
    for seed in range(STEPS):
        optimizer.zero_grad()
        model(x(seed)).square().mean().backward()
        clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        schedule.step()
    return weights(model)


def case_grad_scaler(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for seed in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(model(x(seed)).square().mean()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return weights(model)


def case_autocast(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x()).float().square().mean()
    loss.backward()
    return grads(model)


def case_zero_grad_keeps_tensors(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    for seed in range(STEPS):
        model.zero_grad(set_to_none=False)
        model(x(seed)).square().mean().backward()
    return grads(model)


def case_gradients_are_never_zeroed(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    for seed in range(STEPS):
        model(x(seed)).square().mean().backward()
    return grads(model)


def case_gradients_kept_by_reference(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    model(x(0)).square().mean().backward()
    kept = [p.grad for p in model.parameters()]
    model.zero_grad()
    model(x(1)).square().mean().backward()
    return kept


def case_accumulation_in_no_sync(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    with model.no_sync():
        model(x(0)).square().mean().backward()
        model(x(1)).square().mean().backward()
    model(x(2)).square().mean().backward()
    return grads(model)


def case_evaluation_between(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    for seed in range(STEPS):
        model(x(seed)).square().mean().backward()
        with torch.no_grad():
            model(x(seed))
        with torch.inference_mode():
            model(x(seed))
    return grads(model)


def case_join(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    with model.join():
        train(model, steps=range(RANK + 1))
    return weights(model)


def case_join_divides_by_those_left(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    with model.join(divide_by_initial_world_size=False):
        train(model, steps=range(RANK + 1))
    return weights(model)


def case_comm_hook(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    model.register_comm_hook(None, default_hooks.allreduce_hook)
    return train(model)


def case_fp16_hook(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return train(model)


# Graphs.


def case_two_forwards_one_backward(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    (model(x(0)).square().mean() + model(x(1)).square().mean()).backward()
    return grads(model)


def case_two_forwards_two_backwards(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    losses = [model(x(seed)).square().mean() for seed in range(2)]
    for loss in losses:
        loss.backward()
    return grads(model)


def case_two_backwards_of_one_graph(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    loss = model(x()).square().mean()
    loss.backward(retain_graph=True)
    loss.backward()
    return grads(model)


def case_forward_in_no_sync_before_a_backward(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    output = model(x())
    with model.no_sync():
        model(x(1))
    output.square().mean().backward()
    return grads(model)


def case_backward_outside_of_no_sync(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    with model.no_sync():
        output = model(x())
    output.square().mean().backward()
    model(x(1)).square().mean().backward()
    return grads(model)


def case_backward_inside_no_sync(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    output = model(x())
    with model.no_sync():
        output.square().mean().backward()
    return grads(model)


def case_gradient_penalty(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    point = x().requires_grad_()
    slope = torch.autograd.grad(model(point).sum(), point, create_graph=True)[0]
    (slope.norm() + model(x(1)).square().mean()).backward()
    return grads(model)


def case_create_graph(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    model(x()).square().mean().backward(create_graph=True)
    sum(p.grad.square().sum() for p in model.parameters()).backward()
    return grads(model)


def case_anomaly_mode(wrap: Wrap) -> list[Tensor]:
    with torch.autograd.set_detect_anomaly(True):
        return train(wrap(net()))


def case_backward_in_a_thread(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    loss = model(x()).square().mean()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    return grads(model)


def case_input_that_needs_a_gradient(wrap: Wrap) -> list[Tensor]:
    model = wrap(net())
    model(x().requires_grad_()).square().mean().backward()
    return grads(model)


def case_hooks_on_parameters_and_modules(wrap: Wrap) -> list[Tensor]:
    module = net()
    module[0].weight.register_hook(lambda g: g * 3)
    module[2].register_full_backward_hook(lambda m, gi, go: None)
    module[2].weight.register_post_accumulate_grad_hook(lambda p: None)
    return train(wrap(module))


def case_compiled_after_wrapping(wrap: Wrap) -> list[Tensor]:
    return train(torch.compile(wrap(net()), backend="eager"))


def case_compiled_before_wrapping(wrap: Wrap) -> list[Tensor]:
    return train(wrap(torch.compile(net(), backend="eager")))


# Checkpointing.


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool, times: int = 1) -> None:
        super().__init__()
        self.layers, self.reentrant, self.times = net(), reentrant, times
        self.middle = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for _ in range(self.times):
            x = checkpoint(lambda y: torch.tanh(self.middle(y)), x, use_reentrant=self.reentrant)
        return self.layers[1:](x)


def case_checkpoint(wrap: Wrap) -> list[Tensor]:
    return train(wrap(Checkpointed(reentrant=False)))


def case_checkpoint_reentrant(wrap: Wrap) -> list[Tensor]:
    return train(wrap(Checkpointed(reentrant=True)))


def case_checkpoint_tied(wrap: Wrap) -> list[Tensor]:
    return train(wrap(Checkpointed(reentrant=False, times=2)))


def case_checkpoint_reentrant_tied(wrap: Wrap) -> list[Tensor]:
    model = wrap(Checkpointed(reentrant=True, times=2))
    model(x()).square().mean().backward()
    return grads(model)


def case_checkpoint_reentrant_tied_static(wrap: Wrap) -> list[Tensor]:
    return train(wrap(Checkpointed(reentrant=True, times=2), static_graph=True))


def case_checkpoint_sequential(wrap: Wrap) -> list[Tensor]:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = net()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint_sequential(self.layers, 2, x, use_reentrant=False)

    return train(wrap(Sequence()))


def case_checkpoint_reentrant_in_a_dataclass(wrap: Wrap) -> list[Tensor]:
    class Inside(Checkpointed):
        def forward(self, x: Tensor) -> Any:
            return Data(super().forward(x))

    torch.manual_seed(1)
    model = wrap(Inside(reentrant=True))
    model(x()).logits.square().mean().backward()
    return grads(model)


def families() -> dict[str, Callable[[Wrap], list[Tensor]]]:
    """The cases of tables, by name."""
    found: dict[str, Callable[[Wrap], list[Tensor]]] = {}
    for name, make in OPTIMIZERS.items():
        found[f"optimizer_{name}"] = lambda wrap, make=make: train(wrap(net()), make)
    for name, between in BETWEEN.items():
        found[name] = lambda wrap, between=between: train(wrap(net()), between=between)
    for name, more in OPTIONS.items():
        found[f"option_{name}"] = lambda wrap, more=more: train(wrap(net(), **more))
    return found

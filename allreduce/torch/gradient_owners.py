"""Who reduces a parameter's gradients: one wrapper or optimizer at most.

A second one would take what the first has scaled already: gradients would come out too small, alike
on all ranks, so that nothing shows it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as TorchDDP
from torch.utils.weak import WeakIdKeyDictionary

from allreduce.errors import UsageError
from allreduce.torch.private_names import ddp_around

__all__ = ["Refusal", "check_around", "check_torch", "claim", "holders", "owner_of"]

# By parameter, weak on both sides. It is global, as the hooks are that it stands for.
_owners: Any = WeakIdKeyDictionary()


def owner_of(parameter: Tensor) -> Any:
    """The wrapper or optimizer that reduces the gradients of a parameter; None if none does."""
    reference = _owners.get(parameter)
    return None if reference is None else reference()


def claim(
    owner: object,
    names: Sequence[str],
    parameters: Sequence[Tensor],
    replaces: tuple[type, ...] = (),
) -> None:
    """Makes `owner` reduce these gradients, as long as it lives.

    UsageError if another does, of ours or torch's DistributedDataParallel. One of a type in
    `replaces` loses them instead.
    """
    found = _others(owner, parameters, replaces)
    if found:
        gc.collect()  # what was dropped may be part of a cycle
        found = _others(owner, parameters, replaces)
    for index, other in found.items():
        _refuse(f"allreduce.torch.{type(other).__name__}", names[index])
    check_torch(names, parameters)
    for parameter in parameters:
        _owners[parameter] = weakref.ref(owner)


def check_torch(names: Sequence[str], parameters: Sequence[Tensor]) -> None:
    """Raises UsageError if a DistributedDataParallel of torch's reduces one of these gradients.

    It looks at all objects of the process, so it is for a few times only.
    """
    places = {id(parameter): index for index, parameter in enumerate(parameters)}
    for wrapper in _wrappers_of_torch():
        for parameter in getattr(wrapper, "_module_parameters", ()):
            if parameter.requires_grad and id(parameter) in places:
                _refuse("torch's DistributedDataParallel", names[places[id(parameter)]])


def holders(parameters: Sequence[Tensor]) -> list[tuple[weakref.ref[nn.Module], str, Tensor]]:
    """The modules that have these parameters, each weakly, with the parameter's name in it.

    It looks at all objects of the process, as optimizers are not told of modules.
    """
    known = set(map(id, parameters))
    return [
        (weakref.ref(one), name, parameter)
        for one in gc.get_objects()
        if issubclass(type(one), nn.Module)
        for name, parameter in one.__dict__.get("_parameters", {}).items()
        if id(parameter) in known
    ]


def check_around(module: nn.Module) -> None:
    """Raises UsageError inside the forward pass of a wrapper of torch's that reduces these, too."""
    around = ddp_around()
    if around is None:
        return
    theirs = set(map(id, around))
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) in theirs:
            _refuse("torch's DistributedDataParallel", name)


class Refusal:
    """In place of the names that torch's DistributedDataParallel leaves out: it raises UsageError.

    torch's wrapper reads them when it is put around ours.
    """

    def __iter__(self) -> NoReturn:
        raise UsageError(
            "the module is an allreduce.torch.DistributedDataParallel, which reduces its gradients "
            "already: give the other wrapper (torch's, ours, accelerate's prepare(), Fabric's "
            "setup()) the bare module, or wrap with this one alone and prepare the optimizer and "
            "the data loaders only"
        )


def _others(
    owner: object, parameters: Sequence[Tensor], replaces: tuple[type, ...]
) -> dict[int, object]:
    owners = ((index, owner_of(parameter)) for index, parameter in enumerate(parameters))
    passed = (type(None), *replaces)
    return {i: other for i, other in owners if other is not owner and not isinstance(other, passed)}


def _wrappers_of_torch() -> list[TorchDDP]:
    kinds, new = {TorchDDP}, [TorchDDP]
    while new:
        new = [kind for kind in new.pop().__subclasses__() if kind not in kinds] + new
        kinds.update(new)
    found = [one for one in gc.get_referrers(*kinds) if type(one) in kinds]
    if found:
        gc.collect()
        found = [one for one in gc.get_referrers(*kinds) if type(one) in kinds]
    return found


def _refuse(other: str, name: str) -> NoReturn:
    raise UsageError(
        f"gradients of {name} are reduced by {other} already, and would be scaled "
        "twice: wrap a module once, modules that share parameters together, or drop the other "
        "wrapper first (del)"
    )

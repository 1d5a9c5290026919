"""The tensors in what a module returns, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from allreduce.torch.private_names import tree_leaves

__all__ = ["tensors_in"]

_MOST = 1000  # objects that are looked into: an output may refer to a whole data set
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, nn.Module)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yields tensors in containers, in what torch's pytrees know, and in attributes of objects."""
    seen: set[int] = set()
    rest = [output]
    while rest and len(seen) < _MOST:
        one = rest.pop()
        if isinstance(one, Tensor):
            yield one
        elif not isinstance(one, _PLAIN) and id(one) not in seen:
            seen.add(id(one))
            rest += _parts(one)


def _parts(one: Any) -> Iterable[Any]:
    if isinstance(one, Mapping):
        return one.values()
    if isinstance(one, (list, tuple, set, frozenset)):
        return one
    leaves = tree_leaves(one)
    if len(leaves) != 1 or leaves[0] is not one:
        return leaves
    names = [*getattr(one, "__dict__", ()), *getattr(type(one), "__slots__", ())]
    return [getattr(one, name, None) for name in names]

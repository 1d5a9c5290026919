"""The checkpoints of a run, read back and compared bit by bit."""

from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves_with_path


def last(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


def differences(a: dict, b: dict) -> list[str]:
    """Names of the leaves that are not the same bits."""
    ours, theirs = tree_leaves_with_path(a), tree_leaves_with_path(b)
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    return [
        str(path)
        for (path, x), (_, y) in zip(ours, theirs, strict=True)
        if not (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y)
    ]

"""What the examples train on: 1,797 scanned handwritten digits of 8x8 pixels, and a small network.

The data lie in the package `trainer` (their source and license: trainer/data/NOTICE).
"""

import sys
import zlib
from importlib import resources

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """Returns the training images with their labels, and every seventh image for the test."""
    file = resources.files("trainer.data") / "digits.npz"
    with file.open("rb") as stream, np.load(stream) as arrays:
        images = torch.from_numpy(arrays["images"]).float() / 16  # full ink is 16
        labels = torch.from_numpy(arrays["labels"]).long()
    test = torch.arange(len(images)) % 7 == 0
    return TensorDataset(images[~test], labels[~test]), TensorDataset(images[test], labels[test])


def network() -> nn.Module:
    """Returns a network of one hidden layer, with the same first weights in every run."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


@torch.no_grad()
def loss_of(model: nn.Module, data: TensorDataset) -> float:
    """Returns the mean loss over all the data, computed by this rank alone."""
    images, labels = data.tensors
    return F.cross_entropy(model(images), labels).item()


def report(model: nn.Module, before: float, after: float, accuracy: float) -> None:
    """Prints what this rank has got; ranks whose weights differ in one bit print another digest."""
    weights = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    sys.stdout.write(  # in one piece: all ranks write to the same terminal
        f"rank {dist.get_rank()} of {dist.get_world_size()}, backend {dist.get_backend()}: "
        f"loss {before:.4f} -> {after:.4f}, {accuracy:.1%} of the test images right, "
        f"weights {zlib.crc32(weights.tobytes()):08x}\n"
    )

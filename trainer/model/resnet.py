"""ResNet v1.5 as in the paper (section 5.1), with torchvision's parameter names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["MODELS", "BasicBlock", "Bottleneck", "ResNet", "Shape", "build_model"]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Shortcut B: a 1x1 convolution where the shape changes, else the identity (None)."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions (ResNet-18 and 34)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Branch plus shortcut, then ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        y: Tensor = self.relu(x + shortcut)
        return y

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation that the shortcut is added to."""
        return self.bn2


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3, 1x1; v1.5: the 3x3 carries the stride (ResNet-50 and 101)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Branch plus shortcut, then ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        y: Tensor = self.relu(x + shortcut)
        return y

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation that the shortcut is added to."""
        return self.bn3


def _level(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    """`depth` blocks at one resolution; the first has the stride."""
    first = block(inputs, width, stride)
    rest = (block(width * block.expansion, width, 1) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What sets one ResNet apart: its block, the blocks of each level, and the first level's width.

    The width doubles from level to level. A `small` one, for images of some 14 to 32 pixels, begins
    with a 3x3 convolution of stride 2 instead of the 7x7 and the pooling.
    """

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, ...]
    width: int = 64
    small: bool = False


class ResNet(nn.Module):
    """ResNet for images of shape (n, 3, height, width), float32; gives (n, num_classes) logits.

    Sides are multiples of 32 by design, though any side of at least 1 runs. `state_dict()` has the
    names, shapes and order of torchvision's ResNet, so checkpoints travel both ways.
    """

    def __init__(self, shape: Shape, num_classes: int = 1000) -> None:
        super().__init__()
        width = shape.width
        kernel = 3 if shape.small else 7
        self.conv1, self.bn1 = _conv(3, width, kernel, stride=2), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if shape.small else nn.MaxPool2d(3, 2, padding=1)
        inputs = width
        for index, depth in enumerate(shape.depths):
            level = _level(shape.block, inputs, width << index, depth, 2 if index else 1)
            self.add_module(f"layer{index + 1}", level)
            inputs = (width << index) * shape.block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        self._levels = len(shape.depths)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, fan-out
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.fc.weight.normal_(0.0, 0.01)
        self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for level in range(1, self._levels + 1):
            x = getattr(self, f"layer{level}")(x)
        y: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return y


MODELS = {
    "resnet8": Shape(block=BasicBlock, depths=(1, 1, 1), width=8, small=True),
    "resnet18": Shape(block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet34": Shape(block=BasicBlock, depths=(3, 4, 6, 3)),
    "resnet50": Shape(block=Bottleneck, depths=(3, 4, 6, 3)),
    "resnet101": Shape(block=Bottleneck, depths=(3, 4, 23, 3)),
}


def build_model(name: str, num_classes: int = 1000, gamma: float = 0.0) -> ResNet:
    """The network called `name` (a key of MODELS), initialised as the paper says.

    gamma: of the last normalisation of each block; with 0 each block starts as its shortcut.
    Weights come from torch's global random generator: seed it first. KeyError for another name.
    """
    network = ResNet(MODELS[name], num_classes)
    for module in network.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            nn.init.constant_(module.last_norm.weight, gamma)
    return network

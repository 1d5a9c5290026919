"""ResNet v1.5 as in the paper (section 5.1), with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["MODELS", "BasicBlock", "Bottleneck", "ResNet", "build_model"]


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


class ResNet(nn.Module):
    """ResNet for images of shape (n, 3, height, width), float32; gives (n, num_classes) logits.

    Sides are multiples of 32 by design, though any side of at least 1 runs. `state_dict()` has the
    names, shapes and order of torchvision's ResNet, so checkpoints travel both ways.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _level(block, 64, 64, depths[0], stride=1)
        self.layer2 = _level(block, 64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = _level(block, 128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = _level(block, 256 * block.expansion, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, fan-out
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (BasicBlock, Bottleneck)):  # each block starts as its shortcut
                module.last_norm.weight.zero_()
        self.fc.weight.normal_(0.0, 0.01)
        self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        y: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return y


MODELS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


def build_model(name: str, num_classes: int = 1000) -> ResNet:
    """The network called `name` (a key of MODELS), initialised as the paper says.

    Weights come from torch's global random generator: seed it first. KeyError for another name.
    """
    block, depths = MODELS[name]
    return ResNet(block, depths, num_classes)

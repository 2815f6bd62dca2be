"""ResNet-20 for images of 32 x 32 (He et al. 2015, section 4.2), with shortcuts that have no parameters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad, relu

WIDTHS = (16, 32, 64)
BLOCKS = 3


class Block(nn.Module):
    """Add two 3 x 3 convolutions to the input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride)."""
        out = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.added:  # option A of the paper: the new channels are zeros on both sides
            x = pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return relu(out + x)


class CifarResNet(nn.Module):
    """Classify images of 3 channels into logits of (batch, num_classes)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], 1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], 2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], 2)
        self.linear = nn.Linear(WIDTHS[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    rest = [Block(outputs, outputs, 1) for _ in range(BLOCKS - 1)]
    return nn.Sequential(Block(inputs, outputs, stride), *rest)


def cifar_resnet20(num_classes: int = 10) -> CifarResNet:
    """Make the network with fresh weights."""
    return CifarResNet(num_classes)

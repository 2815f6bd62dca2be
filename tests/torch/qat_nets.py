"""Networks for the tests of QAT and export: each has a shape that something in the placement turns on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        self.stride, self.widen = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.widen:
            half = self.widen // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.widen - half))
        out += x
        return F.relu(out)


class ResNet20(nn.Module):
    """The CIFAR ResNet of He et al. (2016), without weights in its shortcuts; its keys fit the shared checkpoint."""

    def __init__(self, blocks: int = 3, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs, layers = widths[0], []
        for index, width in enumerate(widths):
            first = Block(inputs, width, 1 if index == 0 else 2)
            layers.append(nn.Sequential(first, *(Block(width, width) for _ in range(blocks - 1))))
            inputs = width
        self.layer1, self.layer2, self.layer3 = layers
        self.linear = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


class Toy(nn.Module):
    """A residual with a projection, a concatenation, pooling, Dropout and a Relu module that is used twice."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.relu = nn.ReLU()
        self.mix = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.skip = nn.Conv2d(16, 16, 1)
        self.drop = nn.Dropout(0.1)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = torch.cat([self.relu(self.left(x)), self.relu(self.right(x))], 1)
        x = F.relu(self.norm(self.mix(x)) + self.skip(x))
        x = self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return self.head(F.relu(self.hidden(x)))


class Swish(nn.Module):
    """SiLU between convolutions, which exporters write as Sigmoid and Mul, beside a squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act = nn.SiLU(inplace=True)
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        x = x * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        return self.head(self.act(self.second(x)).mean((2, 3)))


class Encoder(nn.Module):
    """One pre-norm transformer layer over rows of pixels: Linear on three axes, products of activations, GELU."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.heads = nn.Linear(16, width), 2
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, 0])
        y = self.norm1(x)
        split = (x.shape[0], x.shape[1], self.heads, -1)
        q, k, v = (layer(y).view(*split).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))

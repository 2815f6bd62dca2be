"""Train a small MobileNetV2 on CIFAR-10 and export it twice: as it is, and with some channels rescaled (needs torch).

    OMP_WAIT_POLICY=PASSIVE python benchmarks/train_mobilenet.py IMAGES MODELS   # IMAGES has train/ and val/

PASSIVE keeps PyTorch's threads from spinning, which on a machine with other work makes it several times as fast.

Writes mobilenet_cifar.onnx and mobilenet_cifar_x64.onnx: the same function, but 10 % of the hidden channels of every
block are 64 times as large and the weights that read them 64 times as small, the ill-scaled channels that break the
quantization of real MobileNets. ReLU6 is not homogeneous, so the blocks use ReLU (as Nagel et al. 2019, data-free
quantization, do to equalize) and only the stem and the head keep ReLU6.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# expansion, output channels, blocks, stride of the first
STAGES = ((1, 24, 1, 2), (3, 40, 2, 2), (4, 64, 3, 1), (4, 112, 3, 2))
STEM, HEAD, CLASSES = 16, 320, 10
FACTOR, SHARE = 64.0, 0.1  # a power of two: rescaling rounds nothing
PAD = 4
SMALL, SMALL_SHARE = 24, 0.65  # most epochs train on smaller crops, at half the cost


class Block(nn.Module):
    """Expand, filter each channel, project back without an activation; add the input where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _convolution(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(hidden, hidden, 3, stride, groups=hidden)
        self.project = _convolution(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, values: Tensor) -> Tensor:
        """Return the block's output."""
        hidden = functional.relu(self.expand(values)) if isinstance(self.expand, nn.Sequential) else values
        projected: Tensor = self.project(functional.relu(self.depthwise(hidden)))
        return values + projected if self.residual else projected


class MobileNet(nn.Module):
    """MobileNetV2 for 32x32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, STEM, 3)
        blocks, width = [], STEM
        for expansion, outputs, count, stride in STAGES:
            for index in range(count):
                blocks.append(Block(width, outputs, expansion, 1 if index else stride))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(width, HEAD, 1)
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        values = functional.relu6(self.head(self.blocks(functional.relu6(self.stem(images)))))
        logits: Tensor = self.classifier(values.mean((2, 3)))
        return logits


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


@dataclass(frozen=True)
class Images:
    """Hold preprocessed images, NCHW, and their labels."""

    pixels: Tensor
    labels: Tensor

    def batches(self, size: int, side: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches of random crops out of the padded images, half of them flipped."""
        padded = functional.pad(self.pixels, (PAD,) * 4).permute(0, 2, 3, 1).contiguous()
        offsets = padded.shape[1] - side + 1
        for chosen in torch.randperm(len(self.labels), generator=generator).split(size):
            rows, columns = torch.randint(offsets, (2, len(chosen), 1), generator=generator) + torch.arange(side)
            flipped = torch.rand(len(chosen), 1, generator=generator) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
            crops = padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield crops.permute(0, 3, 1, 2), self.labels[chosen]


def read_images(folder: Path) -> Images:
    """Read an image folder: one sub-folder a class, in sorted order."""
    files = [
        (path, label) for label, group in enumerate(sorted(folder.iterdir())) for path in sorted(group.glob("*.jpg"))
    ]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files]).astype(np.float32)
    normalized = (pixels / 255 - np.float32(MEAN)) / np.float32(STD)
    images = torch.from_numpy(normalized).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return Images(images, torch.tensor([label for _, label in files]))


def train(network: nn.Module, train_images: Images, val: Images, options: argparse.Namespace) -> None:
    """Train with SGD, a one-cycle learning rate and label smoothing."""
    optimizer = torch.optim.SGD(network.parameters(), momentum=0.9, weight_decay=5e-4, nesterov=True, lr=options.lr)
    steps = -(-len(train_images.labels) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, epochs=options.epochs, steps_per_epoch=steps)
    generator, started = torch.Generator().manual_seed(options.seed), time.monotonic()
    for epoch in range(options.epochs):
        network.train()
        losses = []
        side = SMALL if epoch < SMALL_SHARE * options.epochs else train_images.pixels.shape[-1]
        for images, labels in train_images.batches(options.batch, side, generator):
            loss = functional.cross_entropy(network(images), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        told = f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, top-1 {accuracy(network, val):.2f} %"
        print(f"{told}, {time.monotonic() - started:.0f} s", flush=True)


@torch.inference_mode()
def logits_of(network: nn.Module, images: Images) -> Tensor:
    """Return the network's logits."""
    network.eval()
    return torch.cat([network(batch) for batch in images.pixels.split(500)])


def accuracy(network: nn.Module, images: Images) -> float:
    """Return top-1 in per cent."""
    return 100 * (logits_of(network, images).argmax(1) == images.labels).double().mean().item()


def rescale(network: MobileNet, seed: int) -> MobileNet:
    """Return the same function with a share of every block's hidden channels scaled by FACTOR."""
    scaled, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    for block in scaled.blocks:
        if isinstance(block.expand, nn.Sequential):
            _rescale_pair(block.expand, block.depthwise[0].weight, 0, generator)
        _rescale_pair(block.depthwise, block.project[0].weight, 1, generator)
    return scaled


@torch.no_grad()
def _rescale_pair(producer: nn.Sequential, consumer: Tensor, axis: int, generator: torch.Generator) -> None:
    """Scale some outputs of a convolution and its normalization, and the consumer's weights that read them."""
    norm = producer[1]
    chosen = torch.randperm(norm.num_features, generator=generator)[: max(1, round(SHARE * norm.num_features))]
    factors = torch.ones(norm.num_features)
    factors[chosen] = FACTOR
    norm.weight *= factors
    norm.bias *= factors
    consumer /= factors.reshape([-1 if index == axis else 1 for index in range(4)])


def export(network: nn.Module, target: Path) -> None:
    """Write the network as ONNX: input `input` (N, 3, 32, 32), output `logits` (N, 10)."""
    sample = (torch.zeros(2, 3, 32, 32),)  # two samples: the exporter takes a batch of one for a constant
    axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
    names = {"input_names": ["input"], "output_names": ["logits"], "opset_version": 17}
    torch.onnx.export(network.eval(), sample, target, dynamo=False, dynamic_axes=axes, **names)
    print(f"{target.name}: {target.stat().st_size:,} bytes")


def main() -> None:
    """Train, export, rescale, compare, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(options.seed)
    train_images, val = read_images(options.images / "train"), read_images(options.images / "val")
    network = MobileNet().to(memory_format=torch.channels_last)
    print(f"{sum(weights.numel() for weights in network.parameters()):,} parameters")
    train(network, train_images, val, options)
    export(network, options.target / "mobilenet_cifar.onnx")
    scaled = rescale(network, options.seed)
    before, after = logits_of(network, val), logits_of(scaled, val)
    print(
        f"rescaled: largest |difference| of the logits {(before - after).abs().max():.3g}, of {before.abs().max():.3g}"
    )
    export(scaled, options.target / "mobilenet_cifar_x64.onnx")


if __name__ == "__main__":
    main()

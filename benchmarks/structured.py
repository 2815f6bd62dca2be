"""ResNet-20 thinned to twice the speed in three ways: channels in blocks of 16, whole blocks, the best mix by time.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/structured.py WEIGHTS.pth IMAGES [--epochs 1] [--threads 2]

IMAGES has train/ and val/ with a folder for each class. Prints a table: MACs, parameters, speed against the dense float
in ONNX Runtime at batch 1 and 16 with its 95 % interval, accuracy without and with training, as Markdown.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sparsify import Ratio, RequestError
from sparsify_torch.block_search import rank_blocks, settle_batch_norms
from sparsify_torch.channels import macs
from sparsify_torch.mixing import thin_to_speed
from sparsify_torch.speed import speedups
from sparsify_torch.thinning import Thinned, thin
from torch import Tensor, nn
from torch.nn import functional

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = list[tuple[Tensor, Tensor]]


class Halved(nn.Module):
    """The shortcut without parameters: every other pixel, channels of zeros on both sides."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.zeros = outputs // 4

    def forward(self, values: Tensor) -> Tensor:
        """Return half the size and twice the channels."""
        return functional.pad(values[:, :, ::2, ::2], (0, 0, 0, 0, self.zeros, self.zeros))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = Halved(outputs) if inputs != outputs else nn.Sequential()

    def forward(self, values: Tensor) -> Tensor:
        """Return the block's output."""
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(values)))))
        made: Tensor = self.relu(branch + self.shortcut(values))
        return made


class ResNet20(nn.Module):
    """The CIFAR ResNet-20 (He et al. 2016), its keys those of the shared weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        reads = 16
        for place, makes in enumerate((16, 32, 64), 1):
            first = Block(reads, makes, 1 if place == 1 else 2)
            setattr(self, f"layer{place}", nn.Sequential(first, Block(makes, makes, 1), Block(makes, makes, 1)))
            reads = makes
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        values = self.relu(self.bn1(self.conv1(images)))
        logits: Tensor = self.linear(self.layer3(self.layer2(self.layer1(values))).mean((2, 3)))
        return logits


def read_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Read a split into memory, normalised."""
    names = sorted(path.name for path in folder.iterdir())
    files = [(path, label) for label, name in enumerate(names) for path in sorted((folder / name).iterdir())]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(
        STD
    )[:, None, None]
    return images, torch.tensor([label for _, label in files])


def batches(images: Tensor, labels: Tensor, size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches; with a seed shuffled, shifted and mirrored."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    order = torch.arange(len(images)) if generator is None else torch.randperm(len(images), generator=generator)
    for chosen in order.split(size):
        picked = images[chosen]
        if generator is not None:
            high, wide = torch.randint(9, (2,), generator=generator).tolist()
            picked = functional.pad(picked, (4, 4, 4, 4))[..., high : high + 32, wide : wide + 32]
            mirrored = torch.rand(len(picked), generator=generator) < 0.5
            picked = torch.where(mirrored[:, None, None, None], picked.flip(3), picked)
        yield picked, labels[chosen]


@torch.no_grad()
def accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return top-1 in per cent."""
    module.eval()
    hits = sum(int((module(picked).argmax(1) == truth).sum()) for picked, truth in batches(images, labels, 500))
    return 100 * hits / len(labels)


def train(module: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train with the labels and the dense module's logits: SGD, one cycle of the learning rate."""
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    steps = epochs * -(-len(images) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, steps, pct_start=0.2)
    for epoch in range(epochs):
        module.train()
        for picked, truth in batches(images, labels, 128, epoch):
            with torch.no_grad():
                told = teacher(picked)
            made = module(picked)
            taught = functional.kl_div((made / 2).log_softmax(1), (told / 2).softmax(1), reduction="batchmean") * 4
            loss = 0.5 * functional.cross_entropy(made, truth) + 0.5 * taught
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def ways(
    dense: nn.Module, inputs: tuple[Tensor], data: Batches, threads: int
) -> dict[str, Callable[[nn.Module], Thinned]]:
    """Return by name how to thin a copy of the dense module."""
    ranked = rank_blocks(dense, inputs, macs, 8, data)

    def whole_blocks(module: nn.Module) -> Thinned:
        for count in range(1, len(ranked) + 1):
            trial = copy.deepcopy(module)
            if thin(trial, inputs, target=1.0, blocks=ranked[:count]).macs[1] <= 0.5 * macs_of(dense, inputs):
                break
        return thin(module, inputs, target=1.0, blocks=ranked[:count])

    def mixed(module: nn.Module) -> Thinned:
        report = thin_to_speed(
            module, inputs, speedup=1.8, data=data, loss=functional.cross_entropy, threads=threads, most_blocks=6
        )
        print("weighed", report.weighed, flush=True)
        return report.thinned

    def channels(multiple: int) -> Callable[[nn.Module], Thinned]:
        """Thin as far as the target, or as widths allow: padded shortcuts fix those of the blocks."""

        def change(module: nn.Module) -> Thinned:
            given = {"data": data, "loss": functional.cross_entropy, "multiple": multiple}
            for target in (0.5, 0.55, 0.6, 0.65, 0.7):
                try:
                    return thin(module, inputs, target=target, score="taylor", **given)  # type: ignore[arg-type]
                except RequestError as error:
                    print(error.problem, flush=True)
            raise SystemExit("no channels can go")

        return change

    return {
        "channels by 16": channels(16),
        "channels of any width": channels(1),
        "whole blocks": whole_blocks,
        "mix by measured time": mixed,
    }


def macs_of(module: nn.Module, inputs: tuple[Tensor]) -> int:
    """Return a module's MACs."""
    return thin(copy.deepcopy(module), inputs, target=1.0).macs[0]


def words(ratio: Ratio) -> str:
    """Write a speed-up with its interval."""
    return f"{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def main() -> None:
    """Thin, time, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    dense = ResNet20()
    dense.load_state_dict(torch.load(options.weights, weights_only=True))
    dense.eval()
    inputs = (torch.zeros(1, 3, 32, 32),)
    taught, seen = read_images(options.images / "train"), read_images(options.images / "val")
    data = [(taught[0][place::157][:128], taught[1][place::157][:128]) for place in range(8)]
    thinner: dict[str, nn.Module] = {"dense": dense}
    reports: dict[str, Thinned] = {}
    chosen = ways(dense, inputs, data, options.threads)
    for name, change in chosen.items():
        if options.only and name not in options.only:
            continue
        started = time.perf_counter()
        thinner[name] = copy.deepcopy(dense)
        reports[name] = change(thinner[name])
        settle_batch_norms(thinner[name], data)
        print(f"{name}: {time.perf_counter() - started:.0f} s", reports[name].blocks, flush=True)
        print({layer: after for layer, (before, after) in reports[name].widths.items() if before != after}, flush=True)
    one = speedups(thinner, inputs, threads=options.threads)
    many = speedups(thinner, (torch.zeros(16, 3, 32, 32),), threads=options.threads)
    print("| way | MACs | parameters | batch 1 | batch 16 | top-1 untrained | top-1 trained |\n" + "|---" * 7 + "|")
    print(f"| dense | 1 | 1 | 1 | 1 | {accuracy(dense, *seen):.1f} | |")
    for name, report in reports.items():
        sizes = " | ".join(f"{b / a:.2f} x fewer" for b, a in (report.macs, report.parameters))
        before = accuracy(thinner[name], *seen)
        print(f"| {name} | {sizes} | {words(one[name])} | {words(many[name])} | {before:.1f} | |", flush=True)
    for name in reversed(list(reports) if options.epochs else []):
        train(thinner[name], dense, *taught, options.epochs)
        print(f"{name}: {accuracy(thinner[name], *seen):.1f} after {options.epochs} epochs", flush=True)


if __name__ == "__main__":
    main()

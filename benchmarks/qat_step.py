"""Time a training step with and without quantization, in turns: python benchmarks/qat_step.py [STEPS] [BATCH]."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "torch"))

from qat_nets import ResNet20
from sparsify_torch import qat
from torch import nn
from torch.nn import functional

STEPS, BATCH = 20, 128


def make_step(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """Return a training step on one batch."""
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(module(images), labels).backward()
        optimizer.step()

    return step


def main(steps: int, batch: int) -> None:
    """Print the median step of each form of a CIFAR ResNet-20, on two threads."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    modules = {"float": ResNet20(), "qat": ResNet20(), "qat, observers frozen": ResNet20()}
    for name, module in modules.items():
        if name != "float":
            qat.begin(module, qat.QuantizationOptions(), images)
            qat.calibrate(module, [images])
        if "frozen" in name:
            qat.freeze_observers(module)
    runs = {name: make_step(module.train(), images, labels) for name, module in modules.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(steps + 2):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn > 1:  # the first ones allocate
                times[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in middle.items():
        print(f"{name:24s} {1000 * seconds:8.1f} ms  {100 * (seconds / middle['float'] - 1):+6.1f} %")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]) if sys.argv[1:] else (STEPS, BATCH))

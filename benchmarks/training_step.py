#!/usr/bin/env python3
"""Time a training step with and without the manager, in turns on the same data; print medians and their ratio.

    python benchmarks/training_step.py [--steps 60] [--batch 32] [--width 16] [--threads 1] [--amp] [--accelerate]

The model is a ResNet of nine blocks on 32 × 32 pixels. Its pruning recipe updates four times an epoch of 100 steps, as
recipes do; the update itself falls into the steps that are timed. --amp computes in bfloat16, --accelerate prepares
model and optimizer by Accelerate, the plain loop's too. PyTorch, one process, the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from sparsify_torch import ScheduledModifierManager
from sparsify_torch.distillation import DistillationModifier
from sparsify_torch.gradual_pruning import GMPruningModifier, MovementPruningModifier
from sparsify_torch.quantization import QuantizationModifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

FIELDS: dict[str, Any] = {
    "init_sparsity": 0.5,
    "final_sparsity": 0.8,
    "start_epoch": 0,
    "end_epoch": 50,
    "update_frequency": 0.25,
    "params": "__ALL_PRUNABLE__",
}


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.last = nn.BatchNorm2d(width)
        self.short = nn.Conv2d(inputs, width, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut."""
        return (self.last(self.second(self.norm(self.first(x)).relu())) + self.short(x)).relu()


def resnet(width: int) -> nn.Module:
    """Return a ResNet-20-like classifier of 32 × 32 pixels."""
    torch.manual_seed(0)
    blocks, inputs = [], width
    for stage in range(3):
        for index in range(3):
            blocks.append(Block(inputs, width << stage, 2 if stage and not index else 1))
            inputs = width << stage
    stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def loop(modifiers: list[Any], given: argparse.Namespace, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """Return a function that trains one step; without modifiers there is no manager."""
    model = resnet(given.width)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    backward: Callable[[Tensor], object] = Tensor.backward
    if given.accelerate:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, optimizer)
        backward = accelerator.backward
    if modifiers:
        manager = ScheduledModifierManager(modifiers)
        optimizer = manager.modify(model, optimizer, steps_per_epoch=100, distillation_teacher="self")

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if given.amp else nullcontext():
            loss = cross_entropy(model(inputs).float(), targets)
        loss = optimizer.loss_update(loss) if modifiers else loss
        backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Time all in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 60), ("batch", 32), ("width", 16), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("amp", "accelerate"):
        parser.add_argument(f"--{name}", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    inputs, targets = torch.randn(given.batch, 3, 32, 32), torch.randint(0, 10, (given.batch,))
    recipes: dict[str, list[Any]] = {
        "plain": [],
        "plain again": [],
        "GMPruning": [GMPruningModifier(**FIELDS)],
        "GMPruning 2:4": [GMPruningModifier(**{**FIELDS, "init_sparsity": 0, "final_sparsity": 0.5}, mask_type="2:4")],
        "MovementPruning": [MovementPruningModifier(**FIELDS)],
        "Distillation": [DistillationModifier()],
        "Quantization": [QuantizationModifier(start_epoch=0)],
        "Quantization, observers frozen": [
            QuantizationModifier(start_epoch=0, disable_quantization_observer_epoch=0.02)
        ],
    }
    steps = {name: loop(modifiers, given, inputs, targets) for name, modifiers in recipes.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(given.steps + 3):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn >= 3:
                times[name].append(1000 * (time.perf_counter() - begin))
    plain = statistics.median(times["plain"])
    rows = {}
    for name, taken in times.items():
        paired = statistics.median(one / base for one, base in zip(taken, times["plain"], strict=True))
        rows[name] = {"median_ms": round(statistics.median(taken), 2), "mean_ms": round(statistics.mean(taken), 2)}
        rows[name] |= {"ratio": round(statistics.median(taken) / plain, 4), "paired_ratio": round(paired, 4)}
    print(json.dumps({"given": vars(given), "torch": torch.__version__, "steps": rows}, indent=1))


if __name__ == "__main__":
    main()

"""Divide what `--max-memory` leaves, always in the same way: the same limit must give the same bytes of model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, prod
from pathlib import Path
from typing import TypeVar

import onnx
from sparsify import Context, Model, RequestError

from sparsify_onnx.columns import inputs, outputs
from sparsify_onnx.describe import fixed_batch
from sparsify_onnx.graph import WeightLayer
from sparsify_onnx.storage import weight_bytes

PROCESS_BYTES = 192 << 20  # of the interpreter, libraries and heap: 130 to 180 MB measured
USUAL_BYTES = 160 << 20  # of that as the model is loaded, at most; what the process holds beyond is not ours
STEP = 64 << 20  # what was measured is rounded up to it, for it differs by a few megabytes from run to run
COPIES = 5  # of the weights: those of the original, of two steps, and of two sessions
LEAST_BYTES = 64 << 20  # to work with
BATCH_SHARE = 4  # activations of one batch, with what ONNX Runtime and NumPy need for them, take memory ÷ this
LARGEST_BATCH = 8
TWIN_BYTES = 256 << 20  # of the weights of layers that run beside those of a model at once
LAYER_BYTES = 4 << 30  # of one layer's problem while it is solved, where no limit is set

Item = TypeVar("Item")


def fit(model: Model, limit: int) -> tuple[int, int]:
    """Return what a limit on the process leaves to work with, and how many samples to run at once.

    Raises RequestError, naming the least that would do, where the limit is too low for the model.
    """
    value: onnx.ModelProto = model.value
    sample = BATCH_SHARE * sample_bytes(model)
    own = PROCESS_BYTES + COPIES * weight_bytes(value)
    alien = max(_resident() - weight_bytes(value) - USUAL_BYTES, 0)
    held = own + ceil(alien / STEP) * STEP
    least = held + max(LEAST_BYTES, sample * (fixed_batch(value) or 1))
    if limit < least:
        raise RequestError(
            f"--max-memory: {limit / 1e6:.0f} MB is too little for this model, whose weights take "
            f"{weight_bytes(value) / 1e6:.0f} MB and one sample's activations {sample_bytes(model) / 1e6:.0f} MB",
            fix=f"give --max-memory {ceil(least / 1e6)}MB or more",
        )
    most = (limit - held) // max(sample, 1)
    return limit - held, max(min(most, LARGEST_BATCH), 1)


def sample_bytes(model: Model) -> int:
    """Count the bytes of all activations of one sample."""
    shapes: Mapping[str, tuple[int, ...]] = model.facts.get("shapes", {})
    return 4 * sum(map(prod, shapes.values()))


def _resident() -> int:
    """Return the bytes of this process that are in memory now, where the system tells."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def share(context: Context, usual: int, parts: int) -> int:
    """Return the bytes that one use may take: `usual`, or one of `parts` of the memory allowed where that is less."""
    return min(usual, context.memory // parts) if context.memory else usual


def by_weight(items: Sequence[Item], size: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """Cut a sequence into stretches of at most `most` bytes, or of one item that alone takes more."""
    part: list[Item] = []
    held = 0
    for item in items:
        if part and held + size(item) > most:
            yield part
            part, held = [], 0
        part, held = [*part, item], held + size(item)
    if part:
        yield part


def float_bytes(layer: WeightLayer) -> int:
    """Count the bytes of a layer's weight in float32."""
    return 4 * prod(layer.shape)


def solver_bytes(layer: WeightLayer) -> int:
    """Estimate what solving a layer holds: the Hessian of one group three times, and copies of its weights."""
    width = inputs(layer) + 1
    return 8 * width * ((layer.group + 2) * width + 12 * outputs(layer))

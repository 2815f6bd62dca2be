"""Keep batch norms consistent with what is exported, where they are folded into the layer before them.

A symmetric grid with one scale per output channel commutes with a factor per output channel: rounding γ/σ · W by the
scale |γ/σ| · s gives γ/σ times what rounding W by s gives. So training may round the weight as it is, let the batch
norm work on the convolution's output, and the folded weight has the same integers (negated where γ is negative). The
usual simulation (Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, §3.2.2; Jacob
et al. 2018) folds first, which costs a second convolution or a division of its output, and gives the same numbers.
What remains is the statistics: training uses those of the batch, the exported model the running ones. Freezing ends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

EPSILON = 1e-5  # of functional.batch_norm
NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
PROPORTIONAL = 1e-4  # of the largest weight: float32 folding is a hundred times better


def use_running_statistics(module: nn.Module) -> None:
    """Make every batch norm normalize by its running mean and variance, and leave them as they are."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.training = False


def round_bias(args: list[Any], steps: Tensor) -> list[Any]:
    """Round the bias among the arguments of a convolution or Linear to multiples of one step a channel."""
    if len(args) < 3 or not isinstance(args[2], Tensor):
        return args
    bias = args[2]
    return [*args[:2], bias + _correction(bias.detach().float(), steps).to(bias.dtype), *args[3:]]


def round_norm_bias(given: Mapping[str, Any], steps: Tensor, before: Tensor | None) -> dict[str, Any]:
    """Change the arguments of a batch norm, by name, so that the bias which folding makes is rounded as in the file.

    steps: those of the layer before it, by channel; `before`: the bias of that layer. Biases are the largest difference
    that is left between module and file: a value moved by a thousandth of a step is rounded another way once in a
    thousand times, and each layer multiplies these. Batch norms that use the batch's statistics stay.
    """
    mean, variance, weight, bias = (given.get(name) for name in ("running_mean", "running_var", "weight", "bias"))
    if given.get("training") or mean is None or variance is None or weight is None or bias is None:
        return dict(given)
    factor = weight.detach().float() / torch.sqrt(variance.float() + given.get("eps", EPSILON))
    shift = mean.float() if before is None else mean.float() - before.detach().float()
    folded = bias.detach().float() - shift * factor
    return {**given, "bias": bias + _correction(folded, steps * factor.abs()).to(bias.dtype)}


def _correction(bias: Tensor, steps: Tensor) -> Tensor:
    """Return what rounding adds to a bias; nothing where a channel has no step."""
    live = steps > torch.finfo(torch.float32).tiny
    steps = torch.where(live, steps, 1.0)
    return torch.where(live, (bias / steps).round() * steps - bias, 0.0)


def row_factors(folded: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Return by how much folding multiplied each row (outputs × inputs), or None where it is not that."""
    if folded.shape != weight.shape:
        return None
    old, new = weight.astype(np.float64), folded.astype(np.float64)
    squares = np.einsum("oi,oi->o", old, old)
    factors = np.einsum("oi,oi->o", old, new) / np.where(squares > 0, squares, 1.0)
    error = np.abs(new - factors[:, None] * old).max(axis=1, initial=0.0)
    return factors if (error <= PROPORTIONAL * np.abs(new).max(axis=1, initial=0.0)).all() else None

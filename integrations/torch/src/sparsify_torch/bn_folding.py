"""Keep batch norms consistent with what is exported, where they are folded into the layer before them.

A symmetric grid with one scale per output channel commutes with a factor per output channel: rounding γ/σ · W by the
scale |γ/σ| · s gives γ/σ times what rounding W by s gives. So training may round the weight as it is, let the batch
norm work on the convolution's output, and the folded weight has the same integers (negated where γ is negative). The
usual simulation (Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, §3.2.2; Jacob
et al. 2018) folds first, which costs a second convolution or a division of its output, and gives the same numbers.
What remains is the statistics: training uses those of the batch, the exported model the running ones. Freezing ends it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

PROPORTIONAL = 1e-4  # of the largest weight: float32 folding is a hundred times better


def use_running_statistics(module: nn.Module) -> None:
    """Make every batch norm normalize by its running mean and variance, and leave them as they are."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.training = False


def row_factors(folded: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Return by how much folding multiplied each row (outputs × inputs), or None where it is not that."""
    if folded.shape != weight.shape:
        return None
    old, new = weight.astype(np.float64), folded.astype(np.float64)
    squares = np.einsum("oi,oi->o", old, old)
    factors = np.einsum("oi,oi->o", old, new) / np.where(squares > 0, squares, 1.0)
    error = np.abs(new - factors[:, None] * old).max(axis=1, initial=0.0)
    return factors if (error <= PROPORTIONAL * np.abs(new).max(axis=1, initial=0.0)).all() else None

"""Gather what a layer's least-squares problem needs from a stream of rows, in a fixed amount of memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsify import StageError

from sparsify_onnx.graph import Floats
from sparsify_onnx.symmetric import Floating, add_gram, factor, solve

Matrix = NDArray[Any]  # float64
DEAD = 1e-6  # of the damping of a live input
WIDE = 640  # columns; above, float32 serves wherever a later step corrects for it, at half the time


@dataclass
class Statistics:
    """Sum over rows, with x the compressed model's input (a constant 1 appended) and y the dense model's output.

    gram: Σ x xᵀ, groups × (inputs+1) × (inputs+1). cross: Σ y xᵀ, groups × outputs × (inputs+1). energy: Σ y² by
    output. Sums are float64; the products over one batch are float32 where there are more than WIDE columns.
    """

    gram: Matrix
    cross: Matrix
    energy: Matrix

    @property
    def rows(self) -> float:
        """Count the rows seen."""
        return float(self.gram[0, -1, -1])


def empty(groups: int, outputs: int, inputs: int) -> Statistics:
    """Start with no rows; `outputs` and `inputs` are those of one group."""
    shape = (groups, inputs + 1, inputs + 1)
    return Statistics(np.zeros(shape), np.zeros((groups, outputs, inputs + 1)), np.zeros((groups, outputs)))


def add_rows(statistics: Statistics, x: Floats, y: Floats) -> None:
    """Add rows × groups × inputs and rows × (groups · outputs)."""
    ones = np.ones((len(x), 1), dtype=np.float32)
    targets = y.reshape(len(y), len(statistics.gram), -1)
    for index in range(len(statistics.gram)):
        inputs, wanted = np.hstack([x[:, index], ones]), targets[:, index]
        if inputs.shape[1] <= WIDE:
            inputs, wanted = inputs.astype(np.float64), wanted.astype(np.float64)
        add_gram(statistics.gram[index], inputs)
        statistics.cross[index] += wanted.T @ inputs
        statistics.energy[index] += np.square(wanted, dtype=np.float64).sum(axis=0)


@dataclass(frozen=True)
class Problem:
    """Minimise trace((W − target) hessian (W − target)ᵀ); the best bias is then mean_output − W mean_input."""

    hessian: Matrix
    target: Matrix
    mean_input: Matrix
    mean_output: Matrix

    def excess(self, weights: Matrix) -> float:
        """Return how much worse than the unpruned optimum some weights are."""
        gap = weights - self.target
        return float(np.vdot(gap @ self.hessian, gap))


def repair_problem(gram: Matrix, cross: Matrix, weights: Matrix, dampening: float, free_bias: bool) -> Problem:
    """Pose min ‖W X + b − Y‖² + λ‖W − W₀‖² for one group, Y the dense model's outputs and X the compressed prefix's.

    λ is `dampening` times the mean of the Hessian's diagonal: it pulls what the samples do not determine towards the
    weights as they were, W₀, instead of towards zero. A free bias is eliminated exactly by centring.
    """
    rows = float(gram[-1, -1])
    shift = 1.0 / rows if free_bias and rows else 0.0
    mean_input, mean_output = gram[:-1, -1] * shift, cross[:, -1] * shift
    hessian = np.outer(-rows * mean_input, mean_input)
    hessian += gram[:-1, :-1]
    wanted = cross[:, :-1] - rows * np.outer(mean_output, mean_input)
    scale, lower = _damp(hessian, dampening)  # by column
    return Problem(hessian, solve(lower, wanted + scale * weights), mean_input, mean_output)


def damped_problem(gram: Floating, weights: Matrix, dampening: float) -> Problem:
    """Pose SparseGPT's own problem for one group: stay near the layer's original weights on the inputs X."""
    hessian = gram.astype(np.float64)
    _damp(hessian, dampening)
    return Problem(hessian, weights, np.zeros(len(hessian)), np.zeros(len(weights)))


def _damp(hessian: Matrix, share: float) -> tuple[Matrix, Matrix]:
    """Add λ to the diagonal in place, enough of it to be positive definite; returns what was added, and the factor.

    An input that is always zero gets next to nothing, so that its weights are the first to go.
    """
    diagonal = np.einsum("ii->i", hessian)
    mean = np.where(diagonal == 0, DEAD, 1.0) * (diagonal.mean() or 1.0)
    added = np.zeros_like(mean)
    for step in (share, *(10.0**power for power in range(-6, 1))):
        more = np.maximum(step * mean, added)
        diagonal += more - added
        added = more
        lower = factor(hessian.copy())
        if lower is not None:
            return added, lower
    raise StageError(
        "a layer's inputs are too large or too uneven to solve for its weights",
        fix="check the samples and the preprocessing for extreme values",
    )


def signal_to_noise(statistics: Statistics, weights: Matrix, bias: Matrix) -> float:
    """Return 10·log10(Σy² / Σ(y − W x − b)²) in dB over the rows seen, with weights as groups × outputs × inputs."""
    whole = np.concatenate([weights, bias[..., None]], axis=2)
    fitted = np.einsum("goi,goi->", whole @ statistics.gram, whole)
    signal = float(statistics.energy.sum())
    noise = max(signal - 2 * float(np.einsum("goi,goi->", whole, statistics.cross)) + float(fitted), 0.0)
    # below 1e-7 of the signal the sums of float32 products hold rounding only
    return 10 * log10(signal / max(noise, 1e-7 * signal)) if signal else inf

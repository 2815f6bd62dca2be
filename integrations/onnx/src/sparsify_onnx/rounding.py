"""Round weights to int8 with one symmetric scale per output channel."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int8]
LARGEST = 127  # -128 stays unused: a symmetric grid needs no zero point
BIAS_LARGEST = 2.0**30  # half of int32, so that a corrected bias still fits
CHUNK = 1 << 22  # values looked at together
Method = Literal["max", "mse"]


def channel_scales(matrix: Floats, method: Method, floor: NDArray[Any] | float = 0.0) -> Floats:
    """Choose a scale for each row of outputs × inputs, at least `floor` (see `bias_floor`).

    max: the largest weight becomes 127. mse: the scale of the least squared error. A row of zeros takes the middle
    scale of the others, so that its bias keeps its precision.
    """
    largest = np.abs(matrix).max(axis=1, initial=0.0).astype(np.float64)
    scales = largest / LARGEST
    live = scales > np.finfo(np.float32).tiny
    if method == "mse" and matrix.shape[1] > 1:
        rows = max(CHUNK // max(matrix.shape[1], 1), 1)
        for start in range(0, len(matrix), rows):
            part = slice(start, start + rows)
            scales[part] = _least_error(matrix[part].astype(np.float64), scales[part])
    middle = float(np.median(scales[live])) if live.any() else 1.0 / LARGEST
    return np.maximum(np.where(live, scales, middle), floor).astype(np.float32)


def _least_error(matrix: NDArray[np.float64], largest: NDArray[np.float64]) -> NDArray[np.float64]:
    best = largest.copy()
    least = np.full(len(matrix), np.inf)
    for share in np.linspace(1.0, 0.5, 51):
        scale = np.where(largest > 0, largest * share, 1.0)[:, None]
        error = matrix - scale * np.clip(np.rint(matrix / scale), -LARGEST, LARGEST)
        total = np.einsum("ij,ij->i", error, error)
        better = total < least
        least[better], best[better] = total[better], largest[better] * share
    return best


def bias_floor(bias: Floats, input_scale: float) -> NDArray[np.float64]:
    """Return the smallest scale per channel with which the bias fits int32 at input_scale · weight_scale."""
    return np.abs(bias.astype(np.float64)) / (input_scale * BIAS_LARGEST)


def round_weights(matrix: Floats, scales: Floats) -> Integers:
    """Round each row to multiples of its scale; zero stays zero."""
    return np.clip(np.rint(matrix / scales[:, None]), -LARGEST, LARGEST).astype(np.int8)

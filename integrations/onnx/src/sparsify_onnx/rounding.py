"""Round weights to int8 with one symmetric scale per output channel."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsify_onnx.symmetric import inverse_factor

Floats = NDArray[np.float32]
Integers = NDArray[np.int8]
Matrix = NDArray[Any]  # float64, or float32 for wide layers
LARGEST = 127  # -128 stays unused: a symmetric grid needs no zero point
REDUCED = 64  # two products with uint8 add up in int16, whatever the activations: 255 · (64 + 64) ≤ 32,767
BIAS_LARGEST = 2.0**30  # half of int32, so that a corrected bias still fits
CHUNK = 1 << 22  # values looked at together
BLOCK = 128  # columns whose errors are passed on together
DAMPENING = 0.01
SWEEPS = 4  # of coordinate descent; later ones move hardly a weight
Method = Literal["max", "mse"]


def channel_scales(matrix: Floats, method: Method, floor: NDArray[Any] | float = 0.0, most: int = LARGEST) -> Floats:
    """Choose a scale for each row of outputs × inputs, at least `floor` (see `bias_floor`), for integers up to `most`.

    max: the largest weight becomes `most`. mse: the scale of the least squared error. A row of zeros takes the middle
    scale of the others, so that its bias keeps its precision.
    """
    largest = np.abs(matrix).max(axis=1, initial=0.0).astype(np.float64)
    scales = largest / most
    live = scales > np.finfo(np.float32).tiny
    if method == "mse":
        rows = max(CHUNK // max(matrix.shape[1], 1), 1)
        for start in range(0, len(matrix), rows):
            part = slice(start, start + rows)
            scales[part] = _least_error(matrix[part].astype(np.float64), scales[part], most)
    middle = float(np.median(scales[live])) if live.any() else 1.0 / most
    return np.maximum(np.where(live, scales, middle), floor).astype(np.float32)


def _least_error(matrix: Matrix, largest: Matrix, most: int) -> Matrix:
    best = largest.copy()
    least = np.full(len(matrix), np.inf)
    for share in np.linspace(1.0, 0.5, 51):
        scale = np.where(largest > 0, largest * share, 1.0)[:, None]
        error = matrix - scale * np.clip(np.rint(matrix / scale), -most, most)
        total = np.einsum("ij,ij->i", error, error)
        better = total < least
        least[better], best[better] = total[better], largest[better] * share
    return best


def bias_floor(bias: Floats, input_scale: float) -> Matrix:
    """Return the smallest scale per channel with which the bias fits int32 at input_scale · weight_scale."""
    return np.asarray(np.abs(bias.astype(np.float64)) / (input_scale * BIAS_LARGEST))


def round_nearest(matrix: Floats, scales: Floats, most: int = LARGEST) -> Integers:
    """Round each row to multiples of its scale; zero stays zero."""
    return np.asarray(np.clip(np.rint(matrix / scales[:, None]), -most, most)).astype(np.int8)


def round_with_feedback(matrix: Floats, scales: Floats, hessian: Matrix, most: int = LARGEST) -> Integers:
    """Round column by column, the most active input first, letting the columns to come make up for each error.

    matrix: outputs × inputs, of all groups; hessian: groups × inputs × inputs, Σ x xᵀ over samples. Frantar et al.,
    "GPTQ" (2023). Zeros stay zero. A row that rounding to nearest serves better is rounded to nearest.
    """
    found = round_nearest(matrix, scales, most)
    rows = len(matrix) // len(hessian)
    for index, whole in enumerate(hessian):
        part = slice(index * rows, (index + 1) * rows)
        steps = scales[part, None].astype(whole.dtype)
        fed = _feed_group(matrix[part], steps, whole, most)
        better = _loss(matrix[part] - fed * steps, whole) < _loss(matrix[part] - found[part] * steps, whole)
        found[part][better] = fed[better]
    return found


def descend(
    integers: Integers, weights: Matrix, scales: Floats, hessian: Matrix, sweeps: int = SWEEPS, most: int = LARGEST
) -> Integers:
    """Move one integer at a time to where it is best given all others; no move raises the error on the samples.

    The objective is that of learned rounding (Nagel et al., "Up or Down? Adaptive Rounding", 2020), (ŵ − w) H (ŵ − w)ᵀ
    by row, minimised over all integers by coordinate descent. Zeros stay zero.
    """
    steps, diagonal = scales.astype(np.float64), np.diag(hessian)
    current, kept = integers.astype(np.float64), np.asarray(weights) != 0
    slope = (current * steps[:, None] - weights) @ hessian
    for _ in range(sweeps):
        moved = 0
        for column in np.flatnonzero(diagonal > 0):
            wanted = current[:, column] - slope[:, column] / (diagonal[column] * steps)
            fresh = np.where(kept[:, column], np.clip(np.rint(wanted), -most, most), 0.0)
            rows = np.flatnonzero(fresh != current[:, column])
            slope[rows] += np.outer((fresh - current[:, column])[rows] * steps[rows], hessian[column])
            current[rows, column] = fresh[rows]
            moved += len(rows)
        if not moved:
            break
    return current.astype(np.int8)


def descend_groups(
    integers: Integers, matrix: Floats, scales: Floats, hessians: Matrix, most: int = LARGEST
) -> Integers:
    """Run `descend` on the rows of each convolution group."""
    found = integers.copy()
    rows = len(matrix) // len(hessians)
    for index, hessian in enumerate(hessians):
        part = slice(index * rows, (index + 1) * rows)
        whole = hessian.astype(np.float64)
        found[part] = descend(integers[part], matrix[part], scales[part], whole, most=most)
    return found


def _feed_group(weights: Floats, steps: Matrix, hessian: Matrix, most: int) -> Integers:
    order = np.argsort(-np.diag(hessian), kind="stable")
    upper = _factor(hessian, order)
    integers = np.empty(weights.shape, dtype=np.int8)
    integers[:, order] = _feed(weights[:, order].astype(hessian.dtype), steps[:, 0], upper, most)
    return integers


def _factor(hessian: Matrix, order: NDArray[np.intp]) -> Matrix:
    """Return the upper Cholesky factor of the inverse in this order of columns, dampened as far as needed."""
    mean, added = float(np.diag(hessian).mean()) or 1.0, 0.0
    for more in (DAMPENING, 10 * DAMPENING, 1.0, 100.0):
        added += more
        copy = hessian[np.ix_(order[::-1], order[::-1])]
        np.einsum("ii->i", copy)[:] += added * mean
        upper = inverse_factor(copy)
        if upper is not None:
            return upper
    raise ValueError("a Hessian holds NaN")  # refused where activations are measured


def _feed(weights: Matrix, steps: Matrix, upper: Matrix, most: int) -> Integers:
    kept = weights != 0
    integers = np.zeros(weights.shape, dtype=np.int8)
    for start in range(0, len(upper), BLOCK):
        stop = min(start + BLOCK, len(upper))
        errors = np.zeros((len(weights), stop - start), dtype=weights.dtype)
        for column in range(start, stop):
            rounded = np.clip(np.rint(weights[:, column] / steps), -most, most) * kept[:, column]
            integers[:, column] = rounded
            errors[:, column - start] = (weights[:, column] - rounded * steps) / upper[column, column]
            weights[:, column + 1 : stop] -= np.outer(errors[:, column - start], upper[column, column + 1 : stop])
        weights[:, stop:] -= errors @ upper[start:stop, stop:]
    return integers


def _loss(error: Matrix, hessian: Matrix) -> Matrix:
    return np.asarray(np.einsum("oi,oi->o", error @ hessian, error))

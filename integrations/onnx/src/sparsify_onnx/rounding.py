"""Round weights to int8 with one symmetric scale per output channel."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky
from scipy.linalg.lapack import get_lapack_funcs

Floats = NDArray[np.float32]
Integers = NDArray[np.int8]
Matrix = NDArray[Any]  # float64, or float32 for wide layers
LARGEST = 127  # -128 stays unused: a symmetric grid needs no zero point
BIAS_LARGEST = 2.0**30  # half of int32, so that a corrected bias still fits
CHUNK = 1 << 22  # values looked at together
BLOCK = 128  # columns whose errors are passed on together
DAMPENING = 0.01
SWEEPS = 4  # of coordinate descent; later ones move hardly a weight
Method = Literal["max", "mse"]


def channel_scales(matrix: Floats, method: Method, floor: NDArray[Any] | float = 0.0) -> Floats:
    """Choose a scale for each row of outputs × inputs, at least `floor` (see `bias_floor`).

    max: the largest weight becomes 127. mse: the scale of the least squared error. A row of zeros takes the middle
    scale of the others, so that its bias keeps its precision.
    """
    largest = np.abs(matrix).max(axis=1, initial=0.0).astype(np.float64)
    scales = largest / LARGEST
    live = scales > np.finfo(np.float32).tiny
    if method == "mse":
        rows = max(CHUNK // max(matrix.shape[1], 1), 1)
        for start in range(0, len(matrix), rows):
            part = slice(start, start + rows)
            scales[part] = _least_error(matrix[part].astype(np.float64), scales[part])
    middle = float(np.median(scales[live])) if live.any() else 1.0 / LARGEST
    return np.maximum(np.where(live, scales, middle), floor).astype(np.float32)


def _least_error(matrix: Matrix, largest: Matrix) -> Matrix:
    best = largest.copy()
    least = np.full(len(matrix), np.inf)
    for share in np.linspace(1.0, 0.5, 51):
        scale = np.where(largest > 0, largest * share, 1.0)[:, None]
        error = matrix - scale * np.clip(np.rint(matrix / scale), -LARGEST, LARGEST)
        total = np.einsum("ij,ij->i", error, error)
        better = total < least
        least[better], best[better] = total[better], largest[better] * share
    return best


def bias_floor(bias: Floats, input_scale: float) -> Matrix:
    """Return the smallest scale per channel with which the bias fits int32 at input_scale · weight_scale."""
    return np.asarray(np.abs(bias.astype(np.float64)) / (input_scale * BIAS_LARGEST))


def round_nearest(matrix: Floats, scales: Floats) -> Integers:
    """Round each row to multiples of its scale; zero stays zero."""
    return np.asarray(np.clip(np.rint(matrix / scales[:, None]), -LARGEST, LARGEST)).astype(np.int8)


def round_with_feedback(matrix: Floats, scales: Floats, hessian: Matrix) -> Integers:
    """Round column by column, the most active input first, letting the columns to come make up for each error.

    matrix: outputs × inputs, of all groups; hessian: groups × inputs × inputs, Σ x xᵀ over samples. Frantar et al.,
    "GPTQ" (2023). Zeros stay zero. A row that rounding to nearest serves better is rounded to nearest.
    """
    groups, size = len(hessian), matrix.shape[1]
    weights = matrix.reshape(groups, -1, size).astype(hessian.dtype)
    steps = scales.reshape(groups, -1, 1).astype(hessian.dtype)
    nearest = np.clip(np.rint(weights / steps), -LARGEST, LARGEST)
    fed = np.stack([_feed_group(*parts) for parts in zip(weights, steps, hessian, strict=True)])
    losses = [_loss(weights - integers * steps, hessian) for integers in (fed, nearest)]
    best = np.where((losses[0] < losses[1])[..., None], fed, nearest)
    return np.asarray(best.reshape(matrix.shape)).astype(np.int8)


def descend(integers: Integers, weights: Matrix, scales: Floats, hessian: Matrix, sweeps: int = SWEEPS) -> Integers:
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
            fresh = np.where(kept[:, column], np.clip(np.rint(wanted), -LARGEST, LARGEST), 0.0)
            rows = np.flatnonzero(fresh != current[:, column])
            slope[rows] += np.outer((fresh - current[:, column])[rows] * steps[rows], hessian[column])
            current[rows, column] = fresh[rows]
            moved += len(rows)
        if not moved:
            break
    return current.astype(np.int8)


def descend_groups(integers: Integers, matrix: Floats, scales: Floats, hessians: Matrix) -> Integers:
    """Run `descend` on the rows of each convolution group."""
    found = integers.copy()
    rows = len(matrix) // len(hessians)
    for index, hessian in enumerate(hessians):
        part = slice(index * rows, (index + 1) * rows)
        whole = hessian.astype(np.float64)
        found[part] = descend(integers[part], matrix[part], scales[part], whole)
    return found


def _feed_group(weights: Matrix, steps: Matrix, hessian: Matrix) -> Matrix:
    order = np.argsort(-np.diag(hessian), kind="stable")
    upper = _factor(hessian[np.ix_(order, order)])
    integers = np.empty_like(weights)
    integers[:, order] = _feed(weights[:, order], steps[:, 0], upper)
    return integers


def _factor(hessian: Matrix) -> Matrix:
    """Return the upper Cholesky factor of the inverse, dampened as far as needed; destroys its argument.

    With H = V Vᵀ for an upper V, which is Cholesky's factor of H read backwards, it is V⁻¹: no H⁻¹ is formed.
    """
    diagonal = np.einsum("ii->i", hessian)
    mean = float(diagonal.mean()) or 1.0
    for added in (DAMPENING, 10 * DAMPENING, 1.0, 100.0):
        diagonal += added * mean
        try:
            lower = cholesky(hessian[::-1, ::-1], lower=True, check_finite=False)
        except LinAlgError:
            continue
        (invert,) = get_lapack_funcs(("trtri",), (lower,))
        return np.asarray(invert(lower[::-1, ::-1], lower=0)[0])
    raise ValueError("a Hessian holds NaN")  # refused where activations are measured


def _feed(weights: Matrix, steps: Matrix, upper: Matrix) -> Matrix:
    kept = weights != 0
    integers = np.zeros_like(weights)
    for start in range(0, len(upper), BLOCK):
        stop = min(start + BLOCK, len(upper))
        errors = np.zeros((len(weights), stop - start), dtype=weights.dtype)
        for column in range(start, stop):
            rounded = np.clip(np.rint(weights[:, column] / steps), -LARGEST, LARGEST) * kept[:, column]
            integers[:, column] = rounded
            errors[:, column - start] = (weights[:, column] - rounded * steps) / upper[column, column]
            weights[:, column + 1 : stop] -= np.outer(errors[:, column - start], upper[column, column + 1 : stop])
        weights[:, stop:] -= errors @ upper[start:stop, stop:]
    return integers


def _loss(error: Matrix, hessian: Matrix) -> Matrix:
    return np.asarray(np.einsum("goi,goi->go", error @ hessian, error))

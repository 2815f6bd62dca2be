"""Choose the range of an 8-bit activation from its histogram, and the grid that spans it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsify_onnx.histogram import ZERO, Histogram

LEVELS = 255
FINEST = float(np.finfo(np.float32).tiny)
Range = tuple[float, float]
Method = Literal["minmax", "percentile", "entropy", "mse"]
Loss = Callable[[Range], float]


@dataclass(frozen=True)
class Grid:
    """Hold the scale and zero point of an asymmetric uint8 tensor; zero is always one of its values."""

    scale: np.float32
    zero_point: np.uint8


def grid(bounds: Range) -> Grid:
    """Span a range, widened to hold zero, by 256 integers; a constant zero gets scale 1."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    scale = np.float32((high - low) / LEVELS)
    if scale < FINEST:
        return Grid(np.float32(1.0), np.uint8(0))
    return Grid(scale, np.uint8(np.clip(np.rint(-low / float(scale)), 0, LEVELS)))


def choose_range(histogram: Histogram, method: Method, percentile: float) -> Range:
    """Choose the range of a tensor: all of it, its middle `percentile` per cent, or what minimises a loss."""
    bounds = histogram.bounds
    if method == "minmax" or bounds[0] == bounds[1]:
        return bounds
    if method == "percentile":
        return _percentile(histogram, percentile)
    loss = _rounding_error if method == "mse" else _divergence
    centers, shares = _occupied(histogram)
    return _search(bounds, partial(loss, centers, shares)) if centers.size else bounds


def _occupied(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """List the bins that hold values, but for the one of zero: every grid holds zero, and a Relu makes half of it."""
    held = np.flatnonzero(histogram.counts)
    held = held[held != ZERO]
    return histogram.centers[held], histogram.counts[held] / max(histogram.counts[held].sum(), 1)


def _percentile(histogram: Histogram, percentile: float) -> Range:
    """Cut the same share of values off both tails; a one-sided tensor has one tail only."""
    low, high = histogram.bounds
    total = histogram.counts.sum()
    cut = total * (1 - percentile / 100) / (2 if low < 0 < high else 1)
    below, above = np.cumsum(histogram.counts), np.cumsum(histogram.counts[::-1])
    first, last = int(np.searchsorted(below, cut, "right")), int(np.searchsorted(above, cut, "right"))
    return histogram.edges(first, len(above) - 1 - last)


def _search(bounds: Range, loss: Loss) -> Range:
    """Shrink both ends together, then each alone, ever finer; the loss has shallow local minima, a scan has none."""
    low, high = bounds
    shares = np.linspace(0.02, 1.0, 50)
    best = _least([(low * share, high * share) for share in shares], loss)
    for step in (0.04, 0.01, 0.0025):
        factors = 1 + step * np.arange(-6, 7)
        for _ in range(2):
            best = _least([(max(best[0] * factor, low), best[1]) for factor in factors], loss) if low else best
            best = _least([(best[0], min(best[1] * factor, high)) for factor in factors], loss) if high else best
    return best


def _least(candidates: list[Range], loss: Loss) -> Range:
    return min(candidates, key=loss)


def _rounding_error(centers: NDArray[np.float64], shares: NDArray[np.float64], bounds: Range) -> float:
    """Return the expected |error|^2.5 of rounding to the grid over `bounds`.

    A square cuts off the largest values, which decide what a network says; BRECQ (Li et al. 2021) takes the power 2.4.
    """
    error = np.abs(_integers(centers, grid(bounds)) * float(grid(bounds).scale) - centers)
    return float(shares @ (error * error * np.sqrt(error)))


def _integers(values: NDArray[np.float64], cell: Grid) -> NDArray[np.float64]:
    """Round to multiples of the scale, within what the zero point leaves on either side of zero."""
    zero = int(cell.zero_point)
    return np.asarray(np.clip(np.rint(values / float(cell.scale)), -zero, LEVELS - zero))


def _divergence(centers: NDArray[np.float64], shares: NDArray[np.float64], bounds: Range) -> float:
    """Return the KL divergence of the grid's distribution, spread over the bins it came from, from the values' own.

    Migacz, "8-bit Inference with TensorRT" (GTC 2017): values beyond the range count at its ends.
    """
    cell = grid(bounds)
    rounded = np.rint(centers / float(cell.scale))
    integers = _integers(centers, cell)
    inside = rounded == integers
    if not inside.any():
        return float("inf")
    clipped = shares.copy()  # what lies beyond the range moves into its outermost occupied bins
    clipped[np.flatnonzero(inside)[0]] += shares[centers < centers[inside][0]].sum()
    clipped[np.flatnonzero(inside)[-1]] += shares[centers > centers[inside][-1]].sum()
    kept, places = clipped[inside], integers[inside].astype(np.int64) + int(cell.zero_point)
    mass = np.bincount(places, weights=shares[inside], minlength=LEVELS + 1)
    spread = np.bincount(places, minlength=LEVELS + 1)
    model = mass[places] / spread[places]
    model /= model.sum()
    return float(kept @ np.log(kept / model))

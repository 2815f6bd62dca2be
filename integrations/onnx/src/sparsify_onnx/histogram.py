"""Count a tensor's values in one pass, in bounded memory, with a result that no order or batching of samples changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HALF = 4096  # bins on each side of zero: 8 to 16 of them make one step of an 8-bit grid
LOWEST = -40  # values below 2^-40 count as zero


@dataclass(frozen=True)
class Histogram:
    """Count values in 2·HALF equal bins over [-2^exponent, 2^exponent).

    Bins of one exponent are pairs of bins of the exponent below, so that histograms merge exactly, whichever range
    each was counted in.
    """

    exponent: int
    counts: NDArray[np.int64]

    @property
    def width(self) -> float:
        """Return the width of one bin."""
        return float(np.ldexp(1.0, self.exponent)) / HALF

    @property
    def centers(self) -> NDArray[np.float64]:
        """Return the middle of each bin."""
        return (np.arange(-HALF, HALF) + 0.5) * self.width

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the outer edges of the bins that hold values, widened to hold zero."""
        held = np.flatnonzero(self.counts)
        if not held.size:
            return 0.0, 0.0
        low, high = int(held[0]) - HALF, int(held[-1]) + 1 - HALF
        if self.exponent == LOWEST and (low, high) == (0, 1):
            return 0.0, 0.0  # nothing but zeros
        return min(low, 0) * self.width, max(high, 0) * self.width


EMPTY = Histogram(LOWEST, np.zeros(2 * HALF, dtype=np.int64))


def count(values: NDArray[np.float32]) -> Histogram:
    """Count finite values."""
    flat = values.reshape(-1)
    if not flat.size:
        return EMPTY
    exponent = _exponent(max(abs(float(flat.min())), abs(float(flat.max()))))
    # a power of two scales exactly, so that a value's bin does not depend on the range it was counted in
    places = np.floor(flat * np.float32(np.ldexp(HALF, -exponent))).astype(np.int32)
    np.clip(places, -HALF, HALF - 1, out=places)
    return Histogram(exponent, np.bincount(places + HALF, minlength=2 * HALF).astype(np.int64))


def _exponent(largest: float) -> int:
    return max(int(np.frexp(largest)[1]), LOWEST)


def merge(left: Histogram, right: Histogram) -> Histogram:
    """Add two histograms in the wider of their ranges."""
    exponent = max(left.exponent, right.exponent)
    return Histogram(exponent, _widen(left, exponent) + _widen(right, exponent))


def _widen(histogram: Histogram, exponent: int) -> NDArray[np.int64]:
    steps = min(exponent - histogram.exponent, HALF.bit_length() - 1)
    if not steps:
        return histogram.counts
    inner = HALF >> steps
    counts = np.zeros(2 * HALF, dtype=np.int64)
    counts[HALF - inner : HALF + inner] = histogram.counts.reshape(2 * inner, -1).sum(axis=1)
    return counts

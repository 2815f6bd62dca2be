"""Count a tensor's values in one pass and bounded memory, alike for every order and batching of the samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HALF = 4096  # bins on each side of zero: 8 to 16 of them make one step of an 8-bit grid
ZERO = HALF - 1  # the place of the bin around zero
STRETCH = 1 << 16  # values counted at once: they stay in the cache, which takes a third of the time away
LOWEST = -40  # a range no smaller than ±2^-40 is told from zero


@dataclass(frozen=True)
class Histogram:
    """Count values over (-2^exponent, 2^exponent), cut off towards zero to multiples of a width.

    Twice the width merges neighbours exactly, whichever range each value was counted in. The bin around zero is two
    widths wide.
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
        return np.asarray((STEPS + 0.5 * np.sign(STEPS)) * self.width, dtype=np.float64)

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the outer edges of the bins that hold values, widened to hold zero."""
        held = np.flatnonzero(self.counts)
        return self.edges(int(held[0]), int(held[-1])) if held.size else (0.0, 0.0)

    def edges(self, first: int, last: int) -> tuple[float, float]:
        """Return the outer edges of two bins, widened to hold zero."""
        low, high = first - ZERO, last - ZERO
        return (low - 1) * self.width if low < 0 else 0.0, (high + 1) * self.width if high > 0 else 0.0


STEPS = np.arange(-ZERO, HALF)
EMPTY = Histogram(LOWEST, np.zeros(len(STEPS), dtype=np.int64))


def count(values: NDArray[np.float32]) -> Histogram:
    """Count finite values."""
    flat = values.reshape(-1)
    if not flat.size:
        return EMPTY
    largest = max(abs(float(flat.min())), abs(float(flat.max())))
    # zeros fit every range: frexp gives them the exponent 0, which would make the bins of a finer histogram coarse
    exponent = max(int(np.frexp(largest)[1]), LOWEST) if largest else LOWEST
    # a power of two scales exactly, so that a value's bin does not depend on the range it was counted in
    scale, counts = np.float32(np.ldexp(HALF, -exponent)), np.zeros(len(STEPS), dtype=np.int64)
    for start in range(0, flat.size, STRETCH):
        places = (flat[start : start + STRETCH] * scale).astype(np.intp)  # which bincount takes without a copy
        places += ZERO
        counts += np.bincount(places, minlength=len(STEPS))
    return Histogram(exponent, counts)


def merge(left: Histogram, right: Histogram) -> Histogram:
    """Add two histograms in the wider of their ranges."""
    exponent = max(left.exponent, right.exponent)
    return Histogram(exponent, _widen(left, exponent) + _widen(right, exponent))


def _widen(histogram: Histogram, exponent: int) -> NDArray[np.int64]:
    doublings = exponent - histogram.exponent
    if not doublings:
        return histogram.counts
    places = np.trunc(np.ldexp(STEPS.astype(np.float64), -doublings)).astype(np.int64)
    counts = np.bincount(places + ZERO, weights=histogram.counts, minlength=len(STEPS))
    return np.asarray(counts, dtype=np.int64)

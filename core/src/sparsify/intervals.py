"""95 % intervals of what was measured on a sample: rates, paired differences, any statistic, and time ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sparsify.contracts import Array

Z = 1.959964  # the normal's 97.5 % quantile
GROUPS = 20  # of the jackknife: that many evaluations of the statistic, however large the sample is

Interval = tuple[float, float]


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, within 1 % from 3 degrees of freedom (Abramowitz & Stegun 26.7.5)."""
    terms = (Z, (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96, (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384)
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def is_hits(records: Array) -> bool:
    """Say whether every record is 0 or 1."""
    return bool(((records == 0) | (records == 1)).all())


def mean_interval(records: Array) -> Interval:
    """Bound 100 × the mean of records, at most 1 each: Wilson's score for hits (Wilson 1927), else the jackknife."""
    if not is_hits(records):
        low, high = _mean_jackknife(records)
        return low, min(high, 100.0)
    count, rate = len(records), float(records.mean())
    scale = 1 + Z**2 / count
    centre = (rate + Z**2 / (2 * count)) / scale
    half = Z * math.sqrt(rate * (1 - rate) / count + Z**2 / (4 * count**2)) / scale
    # the exact bounds at 0 and 1, which rounding would miss
    return (0.0 if rate == 0 else 100 * (centre - half), 100.0 if rate == 1 else 100 * (centre + half))


def difference_interval(before: Array, after: Array) -> Interval:
    """Bound 100 × the mean of before − after, paired by sample.

    Hits: Wald with half a count added to each cell, which stays honest where hardly a sample changed
    (Agresti & Min 2005); else the jackknife over samples.
    """
    if not (is_hits(before) and is_hits(after)):
        return _mean_jackknife(before - after)
    count = len(before) + 2
    lost, won = float((before > after).sum()) + 0.5, float((before < after).sum()) + 0.5
    middle = (lost - won) / count
    half = Z * math.sqrt(lost + won - (lost - won) ** 2 / count) / count
    return 100 * max(-1.0, middle - half), 100 * min(1.0, middle + half)


def _mean_jackknife(records: Array) -> Interval:
    return jackknife(len(records), lambda chosen: 100 * float(records[list(chosen)].mean()))


def jackknife(count: int, statistic: Callable[[Sequence[int]], float]) -> Interval:
    """Bound statistic(all indices) by leaving out each of 20 groups of samples in turn (Shao & Wu 1989).

    For any statistic, such as F1 or mAP, where a bootstrap would cost a thousand evaluations.
    """
    import numpy as np

    value = statistic(range(count))
    if count < 2:
        return value, value
    order = np.random.default_rng(0).permutation(count)
    groups = np.array_split(order, min(GROUPS, count))
    left = [statistic(np.setdiff1d(order, group).tolist()) for group in groups]
    half = student(len(groups) - 1) * math.sqrt((len(groups) - 1) * np.var(left))
    return value - half, value + half

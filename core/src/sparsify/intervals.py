"""95 % intervals of what was measured on a sample: rates, paired differences, any statistic, and time ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

Z = 1.959964  # the normal's 97.5 % quantile
RESAMPLES = 1000
GROUPS = 20  # of the jackknife: that many evaluations of the statistic, however large the sample is

Interval = tuple[float, float]


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, within 1 % from 3 degrees of freedom (Abramowitz & Stegun 26.7.5)."""
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + first / freedom + second / freedom**2 + third / freedom**3


def is_hits(records: NDArray[Any]) -> bool:
    """Say whether every record is 0 or 1."""
    return bool(((records == 0) | (records == 1)).all())


def mean_interval(records: NDArray[Any]) -> Interval:
    """Bound 100 × the mean of records: Wilson's score interval for hits (Wilson 1927), else a seeded bootstrap."""
    if not is_hits(records):
        return bootstrap(records)
    count, rate = len(records), float(records.mean())
    centre = (rate + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * math.sqrt(rate * (1 - rate) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    # the exact bounds at 0 and 1, which rounding would miss
    return (0.0 if rate == 0 else 100 * (centre - half), 100.0 if rate == 1 else 100 * (centre + half))


def difference_interval(before: NDArray[Any], after: NDArray[Any]) -> Interval:
    """Bound 100 × the mean of before − after, paired by sample.

    Hits: Wald with half a count added to each cell, which stays honest where hardly a sample changed
    (Agresti & Min 2005); else a seeded bootstrap over samples.
    """
    if not (is_hits(before) and is_hits(after)):
        return bootstrap(before - after)
    count = len(before) + 2
    lost = float(((before == 1) & (after == 0)).sum()) + 0.5
    won = float(((before == 0) & (after == 1)).sum()) + 0.5
    middle = (lost - won) / count
    half = Z * math.sqrt(lost + won - (lost - won) ** 2 / count) / count
    return 100 * max(-1.0, middle - half), 100 * min(1.0, middle + half)


def bootstrap(records: NDArray[Any], seed: int = 0) -> Interval:
    """Bound 100 × the mean of records by the percentile bootstrap (Efron 1979)."""
    import numpy as np

    generator = np.random.default_rng(seed)
    count = len(records)
    means = [float(records[generator.integers(0, count, count)].mean()) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return 100 * float(low), 100 * float(high)


def jackknife(count: int, statistic: Callable[[Sequence[int]], float]) -> Interval:
    """Bound statistic(all indices) by leaving out each of 20 groups of samples in turn (Shao & Wu 1989).

    For statistics that are no mean, such as F1 or mAP, where a bootstrap would cost a thousand evaluations.
    """
    import numpy as np

    value = statistic(range(count))
    order = np.random.default_rng(0).permutation(count)
    groups = [group for group in np.array_split(order, GROUPS) if len(group)]
    if len(groups) < 2:
        return value, value
    left = [statistic(np.setdiff1d(order, group).tolist()) for group in groups]
    spread = math.sqrt((len(groups) - 1) / len(groups) * sum((one - sum(left) / len(left)) ** 2 for one in left))
    half = student(len(groups) - 1) * spread
    return value - half, value + half

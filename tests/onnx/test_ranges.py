"""Histograms against NumPy in one piece, chosen ranges against brute force."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from numpy.typing import NDArray
from sparsify_onnx.histogram import EMPTY, HALF, ZERO, Histogram, count, merge
from sparsify_onnx.ranges import LEVELS, Grid, _rounding_error, choose_range, grid

VALUES = nps.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32))
SMALL = nps.arrays(np.float32, st.integers(1, 60), elements=st.floats(-3, 9, width=32, allow_subnormal=False))


def same(left: Histogram, right: Histogram) -> bool:
    return left.exponent == right.exponent and np.array_equal(left.counts, right.counts)


@settings(max_examples=150, deadline=None)
@example(values=np.array([0.25, 0.0], np.float32), cuts=[1], seed=0)  # a piece of zeros alone
@given(values=VALUES, cuts=st.lists(st.integers(0, 60), max_size=5), seed=st.integers(0, 99))
def test_streamed_equals_direct_in_any_order(values: NDArray[np.float32], cuts: list[int], seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(values)
    pieces = np.split(shuffled, sorted(min(cut, len(values)) for cut in cuts))
    assert same(reduce(merge, map(count, pieces), EMPTY), count(values))


@settings(max_examples=100, deadline=None)
@given(values=VALUES)
def test_every_value_lies_in_its_bin_and_in_the_bounds(values: NDArray[np.float32]) -> None:
    histogram = count(values)
    low, high = histogram.bounds
    assert histogram.counts.sum() == len(values)
    assert low <= min(values.min(), 0) + histogram.width
    assert max(values.max(), 0) <= high + histogram.width
    places = np.trunc(values.astype(np.float64) / histogram.width).astype(int)
    assert np.array_equal(histogram.counts, np.bincount(places + HALF - 1, minlength=2 * HALF - 1))


def test_zeros_and_tiny_values_count_as_nothing() -> None:
    assert count(np.zeros((3, 4), np.float32)).bounds == (0.0, 0.0)
    assert count(np.zeros((0, 4), np.float32)).bounds == (0.0, 0.0)
    assert grid((0.0, 0.0)) == Grid(np.float32(1), np.uint8(0))


@settings(max_examples=100, deadline=None)
@given(low=st.floats(-1e4, 1e4, width=32), high=st.floats(-1e4, 1e4, width=32))
def test_a_grid_holds_zero_exactly_and_spans_its_range(low: float, high: float) -> None:
    cell = grid((min(low, high), max(low, high)))
    scale, zero = float(cell.scale), int(cell.zero_point)
    assert 0 <= zero <= LEVELS
    assert scale > 0
    bottom, top = min(low, high, 0.0), max(low, high, 0.0)
    if top - bottom > 1e-30:
        assert -zero * scale == pytest.approx(bottom, abs=scale)
        assert (LEVELS - zero) * scale == pytest.approx(top, abs=scale)
        assert (LEVELS * scale) == pytest.approx(top - bottom, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(values=SMALL)
def test_mse_search_is_near_brute_force(values: NDArray[np.float32]) -> None:
    histogram = count(values)
    bounds = histogram.bounds
    centers = histogram.centers
    held = np.flatnonzero(histogram.counts)
    held = held[held != ZERO]
    if not held.size:
        return
    shares = histogram.counts[held] / histogram.counts[held].sum()

    def loss(pair: tuple[float, float]) -> float:
        return _rounding_error(centers[held], shares, pair)

    steps = np.linspace(0, 1, 81)[1:]
    lows, highs = steps * bounds[0] if bounds[0] else [0.0], steps * bounds[1] if bounds[1] else [0.0]
    best = min(loss((low, high)) for low in lows for high in highs)
    full = loss(bounds)
    found = loss(choose_range(histogram, "mse", 99.99))
    assert found <= full
    step = (bounds[1] - bounds[0]) / LEVELS
    assert found <= best * 1.5 + (0.1 * step) ** 2.5


def test_mse_cuts_a_long_tail_and_keeps_a_uniform_tensor() -> None:
    random = np.random.default_rng(0)
    histogram = count(random.standard_normal(1_000_000).astype(np.float32))
    low, high = choose_range(histogram, "mse", 99.99)
    assert 0.6 * histogram.bounds[1] < high < 0.97 * histogram.bounds[1]
    assert 0.97 * histogram.bounds[0] < low < 0.6 * histogram.bounds[0]
    uniform = random.uniform(-1, 3, 100_000).astype(np.float32)
    assert choose_range(count(uniform), "mse", 99.99) == pytest.approx((-1, 3), abs=0.05)


def test_percentile_matches_numpy() -> None:
    random = np.random.default_rng(1)
    normal = random.standard_normal(200_000).astype(np.float32)
    low, high = choose_range(count(normal), "percentile", 99.0)
    assert (low, high) == pytest.approx(tuple(np.quantile(normal, [0.005, 0.995])), abs=2 * count(normal).width)
    one_sided = np.abs(normal)
    low, high = choose_range(count(one_sided), "percentile", 99.0)
    assert low == 0.0
    assert high == pytest.approx(float(np.quantile(one_sided, 0.99)), abs=2 * count(one_sided).width)


def test_minmax_is_the_range_and_entropy_lies_inside() -> None:
    values = np.random.default_rng(2).laplace(size=100_000).astype(np.float32)
    histogram = count(values)
    assert choose_range(histogram, "minmax", 99.99) == histogram.bounds
    low, high = choose_range(histogram, "entropy", 99.99)
    assert histogram.bounds[0] <= low < -1
    assert 1 < high <= histogram.bounds[1]


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_constant_tensors_have_a_range(method: str) -> None:
    for value in (0.0, 3.0, -2.5):
        low, high = choose_range(count(np.full(9, value, np.float32)), method, 99.99)  # type: ignore[arg-type]
        assert low <= 0.0 <= high
        cell = grid((low, high))
        assert abs((np.rint(value / cell.scale) * cell.scale) - value) <= cell.scale
        assert low <= value + 0.01 * abs(value)
        assert high >= value - 0.01 * abs(value)

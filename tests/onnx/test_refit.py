"""The repair problem: what it minimises, its bias, its prior, and the edge cases of real activations."""

from __future__ import annotations

import numpy as np
import pytest
from sparsify_onnx.hessian import Statistics, add_rows, damped_problem, empty, repair_problem, signal_to_noise
from sparsify_onnx.refit import refit

RANDOM_ROWS = 300


def gathered(x: np.ndarray, y: np.ndarray) -> Statistics:
    statistics = empty(1, y.shape[1], x.shape[1])
    add_rows(statistics, x[:, None].astype(np.float32), y.astype(np.float32))
    return statistics


def rows(seed: int = 0, inputs: int = 6, outputs: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((RANDOM_ROWS, inputs)) @ random.standard_normal((inputs, inputs)) + 2
    weights = random.standard_normal((outputs, inputs))
    return x, x @ weights.T + random.standard_normal(outputs) + random.normal(0, 0.3, (RANDOM_ROWS, outputs)), weights


def test_without_damping_or_mask_it_is_ordinary_least_squares() -> None:
    x, y, weights = rows()
    statistics = gathered(x, y)
    problem = repair_problem(statistics.gram[0], statistics.cross[0], weights, 0.0, free_bias=True)
    best, *_ = np.linalg.lstsq(np.hstack([x, np.ones((len(x), 1))]), y, rcond=None)
    np.testing.assert_allclose(problem.target, best[:-1].T, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        problem.mean_output - problem.target @ problem.mean_input, best[-1], rtol=1e-3, atol=2e-3
    )


def test_a_masked_refit_is_least_squares_on_the_columns_kept_and_the_bias() -> None:
    x, y, weights = rows(1)
    statistics = gathered(x, y)
    problem = repair_problem(statistics.gram[0], statistics.cross[0], weights, 0.0, free_bias=True)
    mask = np.random.default_rng(1).random(weights.shape) < 0.5
    found = refit(problem, mask, problem.target * mask)
    for row, kept in enumerate(mask):
        best, *_ = np.linalg.lstsq(np.hstack([x[:, kept], np.ones((len(x), 1))]), y[:, row], rcond=None)
        np.testing.assert_allclose(found[row, kept], best[:-1], rtol=1e-3, atol=1e-3)


def test_without_a_free_bias_it_is_least_squares_through_the_origin() -> None:
    x, y, weights = rows(2)
    statistics = gathered(x, y)
    problem = repair_problem(statistics.gram[0], statistics.cross[0], weights, 0.0, free_bias=False)
    np.testing.assert_allclose(problem.target, np.linalg.lstsq(x, y, rcond=None)[0].T, rtol=1e-3, atol=1e-3)
    assert not problem.mean_input.any()
    assert not problem.mean_output.any()


def test_what_the_samples_do_not_determine_stays_at_the_original_weights() -> None:
    x, y, weights = rows(3)
    x[:, 2] = 0  # never seen
    x[:, 4] = x[:, 5]  # cannot be told apart
    y = x @ weights.T
    statistics = gathered(x, y)
    problem = repair_problem(statistics.gram[0], statistics.cross[0], weights, 0.001, free_bias=True)
    np.testing.assert_allclose(problem.target, weights, atol=1e-2)


@pytest.mark.parametrize("dampening", [0.0, 0.01])
def test_all_zero_inputs_leave_the_weights_and_set_the_bias_to_the_mean(dampening: float) -> None:
    weights = np.arange(6.0).reshape(2, 3)
    statistics = gathered(np.zeros((10, 3)), np.tile([1.0, -2.0], (10, 1)))
    problem = repair_problem(statistics.gram[0], statistics.cross[0], weights, dampening, free_bias=True)
    np.testing.assert_allclose(problem.target, weights)
    np.testing.assert_allclose(problem.mean_output, [1, -2])


def test_no_rows_at_all_leave_the_weights() -> None:
    weights = np.arange(6.0).reshape(2, 3)
    statistics = empty(1, 2, 3)
    assert statistics.rows == 0
    problem = repair_problem(statistics.gram[0], statistics.cross[0], weights, 0.01, free_bias=True)
    np.testing.assert_allclose(problem.target, weights)


def test_fewer_rows_than_columns_are_solved() -> None:
    x, y, weights = rows(4, inputs=6)
    statistics = gathered(x[:3], y[:3])
    for dampening in (0.0, 0.01):
        problem = repair_problem(statistics.gram[0], statistics.cross[0], weights, dampening, free_bias=True)
        assert np.isfinite(problem.target).all()
        assert np.linalg.eigvalsh(problem.hessian).min() > 0


def test_sparsegpts_own_problem_starts_from_the_original_weights() -> None:
    x, y, weights = rows(5)
    problem = damped_problem(gathered(x, y).gram[0][:-1, :-1], weights, 0.01)
    assert problem.target is weights
    diagonal = np.diag(x.T @ x)
    np.testing.assert_allclose(np.diag(problem.hessian), diagonal + 0.01 * diagonal.mean(), rtol=1e-4)


def test_signal_to_noise_is_that_of_the_rows() -> None:
    x, y, weights = rows(6)
    bias = np.array([0.5, 1.0, -1.0])
    noise = y - x @ weights.T - bias
    expected = 10 * np.log10((y**2).sum() / (noise**2).sum())
    found = signal_to_noise(gathered(x, y), weights[None], bias[None])
    assert found == pytest.approx(expected, abs=0.01)
    assert signal_to_noise(gathered(x, x @ weights.T), weights[None], np.zeros((1, 3))) <= 70.001

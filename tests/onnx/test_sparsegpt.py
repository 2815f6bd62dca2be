"""The solver against brute force and against its own parts, on random least-squares problems."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify_onnx import sparsegpt as solver
from sparsify_onnx.hessian import Matrix, Problem, damped_problem
from sparsify_onnx.masks import Pattern, Structure, choose, lay
from sparsify_onnx.refit import refit

PLAIN = Structure()


def random_problem(seed: int, outputs: int, inputs: int, rows: int = 200) -> Problem:
    """Pose a problem with correlated inputs of very different size, as activations have."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((inputs, inputs)) * np.exp(random.normal(0, 0.7, inputs))
    x = random.standard_normal((rows, inputs)) @ mixing + random.normal(0, 1, inputs)
    return damped_problem(x.T @ x, random.standard_normal((outputs, inputs)), 0.001)


def free(problem: Problem) -> np.ndarray:
    return np.zeros(problem.target.shape, dtype=bool)


def best_loss(problem: Problem, zeros: int) -> float:
    """Try every mask with this many zeros, each with its least-squares weights."""
    outputs, inputs = problem.target.shape
    losses = np.full((outputs, inputs + 1), np.inf)  # by row and zeros in it: rows are independent given the counts
    for row, count in product(range(outputs), range(inputs + 1)):
        wanted = problem.target[row]
        for gone in map(list, combinations(range(inputs), count)):
            kept = [column for column in range(inputs) if column not in gone]
            schur = problem.hessian[np.ix_(gone, gone)]
            if kept and gone:
                cross = problem.hessian[np.ix_(gone, kept)]
                schur = schur - cross @ np.linalg.solve(problem.hessian[np.ix_(kept, kept)], cross.T)
            losses[row, count] = min(losses[row, count], wanted[gone] @ schur @ wanted[gone])
    splits = (split for split in product(range(inputs + 1), repeat=outputs) if sum(split) == zeros)
    return float(min(sum(losses[row, count] for row, count in enumerate(split)) for split in splits))


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_pruned_weights_are_near_the_best_of_all_masks(outputs: int) -> None:
    ratios = []
    for seed in range(30):
        problem = random_problem(seed, outputs, 7)
        zeros = (7 * outputs) // 2
        found = solver.prune(problem, lay(PLAIN, 1, 7), zeros, free(problem))
        assert np.count_nonzero(found == 0) == zeros
        best = best_loss(problem, zeros)
        assert problem.excess(found) >= best * (1 - 1e-6)
        ratios.append(problem.excess(found) / best)
    assert np.median(ratios) < 1.05
    assert np.mean(np.array(ratios) < 1.001) > 0.4


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4000), st.sampled_from([2, 5, 10**6]), st.floats(0, 1))
def test_the_highest_scores_are_kept_and_no_more(seed: int, size: int, distinct: int, share: float) -> None:
    random = np.random.default_rng(seed)
    scores = np.square(random.integers(0, distinct, (3, size)).astype(np.float32)) * random.lognormal(0, 2, size)
    scores = np.sort(scores, axis=None).reshape(scores.shape) if seed % 3 else scores  # a sample that misleads
    zeros = round(share * scores.size)
    kept = choose(lay(PLAIN, 1, size), scores, zeros)
    assert np.count_nonzero(~kept) == zeros
    assert scores[~kept].max(initial=0) <= scores[kept].min(initial=np.inf)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 24), st.floats(0, 1))
def test_with_one_mask_the_refit_is_never_above_sparsegpt_or_magnitude(
    seed: int, outputs: int, inputs: int, sparsity: float
) -> None:
    problem = random_problem(seed, outputs, inputs)
    pattern, zeros = lay(PLAIN, 1, inputs), round(sparsity * outputs * inputs)
    swept, swept_mask = solver.sparsegpt(problem, pattern, zeros, free(problem))
    magnitude_mask = choose(pattern, np.abs(problem.target), zeros)
    for start, mask in ((swept, swept_mask), (problem.target * magnitude_mask, magnitude_mask)):
        found = refit(problem, mask, start)
        assert loss(problem, found) <= loss(problem, start) * (1 + 1e-9) + 1e-9
        assert not found[~mask].any()


@pytest.mark.parametrize("structure", [PLAIN, Structure(1, 4, 2), Structure(2, 3)], ids=["plain", "2:4", "2x3"])
def test_several_counts_in_one_sweep_are_those_of_a_sweep_each(structure: Structure) -> None:
    problem = random_problem(3, 6, 48)
    pattern = lay(structure, 1, 48)
    counts = [0, 40, 150, 288]
    for zeros, (weights, mask) in zip(counts, solver.sweep(problem, pattern, counts, free(problem), 20), strict=True):
        alone, alone_mask = solver.sparsegpt(problem, pattern, zeros, free(problem), 20)
        np.testing.assert_array_equal(mask, alone_mask)
        np.testing.assert_allclose(weights, alone, atol=1e-12)
        assert not weights[~mask].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(4, 32), st.floats(0.1, 0.9))
def test_pruning_is_never_above_sparsegpt(seed: int, outputs: int, inputs: int, sparsity: float) -> None:
    problem = random_problem(seed, outputs, inputs)
    pattern, zeros = lay(PLAIN, 1, inputs), round(sparsity * outputs * inputs)
    swept, _ = solver.sparsegpt(problem, pattern, zeros, free(problem))
    found = solver.prune(problem, pattern, zeros, free(problem))
    assert loss(problem, found) <= loss(problem, swept) * (1 + 1e-9) + 1e-9


def loss(problem: Problem, weights: Matrix) -> float:
    gap = weights - problem.target
    return float(np.trace(gap @ problem.hessian @ gap.T))


def medians(outputs: int, inputs: int, sparsity: float) -> tuple[float, float, float]:
    losses = []
    for seed in range(25):
        problem = random_problem(seed, outputs, inputs)
        pattern, zeros = lay(PLAIN, 1, inputs), round(sparsity * outputs * inputs)
        magnitude = problem.target * choose(pattern, np.abs(problem.target), zeros)
        swept, _ = solver.sparsegpt(problem, pattern, zeros, free(problem), block_size=16)
        found = solver.prune(problem, pattern, zeros, free(problem), block_size=16)
        losses.append([problem.excess(weights) for weights in (magnitude, swept, found)])
    magnitude_loss, swept_loss, found_loss = np.median(losses, axis=0)
    return float(magnitude_loss), float(swept_loss), float(found_loss)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_in_the_median_sparsegpt_beats_magnitude_and_alps_beats_sparsegpt(sparsity: float) -> None:
    magnitude, swept, found = medians(8, 48, sparsity)
    assert swept <= magnitude
    assert found <= 0.9 * swept


@pytest.mark.parametrize("block_size", [1, 5, 128])
def test_the_sweep_zeros_exactly_what_it_is_asked(block_size: int) -> None:
    problem = random_problem(3, 6, 40)
    for zeros in (0, 1, 119, 240):
        swept, mask = solver.sparsegpt(problem, lay(PLAIN, 1, 40), zeros, free(problem), block_size)
        assert np.count_nonzero(~mask) == zeros
        assert not swept[~mask].any()


def test_the_sweep_of_one_block_gives_the_least_squares_weights_of_what_follows_a_zero() -> None:
    """Zero the first column alone: the others must then hold the exact optimum, as in optimal brain surgery."""
    problem = random_problem(1, 3, 10)
    fixed = free(problem)
    fixed[:, 0] = True
    swept, mask = solver.sparsegpt(problem, lay(PLAIN, 1, 10), 3, fixed)
    assert (~mask).sum(axis=0).tolist() == [3] + [0] * 9
    np.testing.assert_allclose(swept, refit(problem, mask, swept), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("text", "structure"), [("2:4", Structure(1, 4, 2)), ("1:3", Structure(1, 3, 1))])
def test_n_of_m_is_exact_within_each_kernel_position(text: str, structure: Structure) -> None:
    problem = random_problem(5, 6, 3 * 8)
    for found in (
        solver.prune(problem, lay(structure, 3, 8), 0, free(problem)),
        solver.sparsegpt(problem, lay(structure, 3, 8), 0, free(problem))[0],
    ):
        for position in range(3):
            for start in range(0, 8, structure.columns):
                inside = found[:, 8 * position + start : 8 * position + min(start + structure.columns, 8)]
                most = min(structure.keep, inside.shape[1])
                assert (np.count_nonzero(inside, axis=1) == most).all(), text


@pytest.mark.parametrize("structure", [Structure(1, 4), Structure(2, 2), Structure(4, 3)])
def test_blocks_go_or_stay_whole(structure: Structure) -> None:
    problem = random_problem(7, 6, 2 * 8)
    zeros = round(0.5 * problem.target.size)
    found = solver.prune(problem, lay(structure, 2, 8), zeros, free(problem))
    assert abs(np.count_nonzero(found == 0) - zeros) <= structure.rows * structure.columns
    for row, position, start in product(range(0, 6, structure.rows), range(2), range(0, 8, structure.columns)):
        stop = min(start + structure.columns, 8)
        block = found[row : row + structure.rows, 8 * position + start : 8 * position + stop]
        assert np.count_nonzero(block) in (0, block.size)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([PLAIN, Structure(1, 4, 2), Structure(1, 4)]))
def test_weights_that_are_zero_already_stay_so(seed: int, structure: Structure) -> None:
    problem = random_problem(seed, 4, 16)
    fixed = np.random.default_rng(seed).random(problem.target.shape) < 0.2
    found = solver.prune(problem, lay(structure, 1, 16), 32, fixed)
    assert not found[fixed].any()


def test_conjugate_gradients_reach_the_exact_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(2, 8, 64, rows=400)
    mask = np.random.default_rng(0).random(problem.target.shape) < 0.5
    exact = refit(problem, mask, problem.target * mask)
    monkeypatch.setattr("sparsify_onnx.refit.EXACT_COLUMNS", 1)
    monkeypatch.setattr("sparsify_onnx.refit.STEPS", 300)
    approached = refit(problem, mask, problem.target * mask, settled=0)
    np.testing.assert_allclose(problem.excess(approached), problem.excess(exact), rtol=1e-6)
    monkeypatch.setattr("sparsify_onnx.refit.STEPS", 3)
    assert problem.excess(exact) <= problem.excess(refit(problem, mask, problem.target * mask))
    assert problem.excess(refit(problem, mask, problem.target * mask)) <= problem.excess(problem.target * mask)
    monkeypatch.setattr("sparsify_onnx.refit.STEPS", 40)
    errors = [problem.excess(refit(problem, mask, problem.target * mask, settled=share)) for share in (0.5, 1e-2, 0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] <= 1.05 * problem.excess(exact)


def test_a_pattern_keeps_its_blocks_when_cut() -> None:
    pattern = lay(Structure(1, 4), 2, 6)
    assert isinstance(pattern, Pattern)
    assert pattern.group.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3]
    assert solver.edges(pattern, 5) == [0, 6, 12]
    assert solver.edges(lay(Structure(1, 4, 2), 2, 6), 128) == [0, 4, 6, 10, 12]

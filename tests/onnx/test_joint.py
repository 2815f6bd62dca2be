"""Mask, weights, rounding and bias from one solve: exact patterns and grids, and errors below prune-then-round."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify import Context, Model
from sparsify_onnx.affine import read_matrix
from sparsify_onnx.alone import measure_alone
from sparsify_onnx.equalization import EqualizationModifier
from sparsify_onnx.graph import read_weight, weight_layers
from sparsify_onnx.loader import load
from sparsify_onnx.pruning import SparseGPTModifier
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.rounding import channel_scales, descend, round_nearest, round_with_feedback

from tests.onnx import models
from tests.onnx.test_sparsegpt import random_problem


def loss(integers: np.ndarray, scales: np.ndarray, weights: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    gap = integers * scales[:, None].astype(np.float64) - weights
    return np.einsum("oi,ij,oj->o", gap, hessian, gap)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 12), st.floats(0.0, 0.9))
def test_descent_never_raises_a_rows_error_and_keeps_zeros(seed: int, rows: int, columns: int, zeros: float) -> None:
    problem = random_problem(seed, rows, columns)
    weights = problem.target * (np.random.default_rng(seed).random(problem.target.shape) >= zeros)
    scales = channel_scales(weights.astype(np.float32), "max")
    for start in (
        round_nearest(weights.astype(np.float32), scales),
        round_with_feedback(weights.astype(np.float32), scales, problem.hessian[None]),
    ):
        found = descend(start, weights, scales, problem.hessian)
        before, after = (loss(one, scales, weights, problem.hessian) for one in (start, found))
        assert (after <= before * (1 + 1e-9) + 1e-12).all()
        assert not found[weights == 0].any()
        assert np.abs(found.astype(int)).max(initial=0) <= 127


def test_descent_ends_where_no_single_step_helps_and_near_the_best() -> None:
    ratios = []
    for seed in range(20):
        problem = random_problem(seed, 1, 4)
        scales = np.full(1, float(np.abs(problem.target).max()) / 3, np.float32)  # a grid of 7 values: brute force
        start = round_nearest(problem.target.astype(np.float32), scales)
        found = descend(start, problem.target, scales, problem.hessian, sweeps=50)
        reached = loss(found, scales, problem.target, problem.hessian)[0]
        for column, step in product(range(4), (-1, 1)):
            moved = found.copy()
            moved[0, column] += step
            assert loss(moved, scales, problem.target, problem.hessian)[0] >= reached * (1 - 1e-9)
        grid = np.array(list(product(range(-4, 5), repeat=4)))
        losses = loss(grid, np.repeat(scales, len(grid)), np.repeat(problem.target, len(grid), 0), problem.hessian)
        ratios.append(reached / losses.min())
    assert np.median(ratios) < 1.3


def context(model: Model) -> Context:
    return Context(models.dataset(model.value, 60), batch_size=20, threads=1)


@pytest.mark.parametrize("family", ["conv_net", "residual_net", "fire_net", "mlp", "attention"])
@pytest.mark.parametrize("structure", ["unstructured", "2:4", "1x4"])
def test_rounded_weights_lie_on_the_grid_and_keep_the_pattern(family: str, structure: str, tmp_path: object) -> None:
    model = load(models.save(models.FAMILY[family](), tmp_path))  # type: ignore[arg-type]
    options = {"sparsity": 0.5, "mask_structure": structure}
    plain = SparseGPTModifier(**options).apply(model, context(model))
    rounded = SparseGPTModifier(**options, round_weights=True).apply(model, context(model))
    for layer in weight_layers(model.value):
        if not layer.prunable:
            continue
        scales, matrix = rounded.facts["weight_scales"][layer.name], read_matrix(rounded.value, layer)
        steps = matrix / scales[:, None]
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        assert np.abs(np.rint(steps)).max() <= 127
        asked = plain.facts["pruned"][layer.name]["sparsity"]
        assert (
            rounded.facts["pruned"][layer.name]["sparsity"] >= asked - 1e-9
        )  # rounding may add zeros, takes none away


def test_quantization_takes_rounded_weights_as_they_are(tmp_path: object) -> None:
    from tests.onnx.test_quantization import stored

    model = load(models.save(models.residual_net(), tmp_path))  # type: ignore[arg-type]
    even = EqualizationModifier().apply(model, context(model))
    pruned = SparseGPTModifier(sparsity=0.5, round_weights=True).apply(even, context(model))
    result = QuantizationModifier().apply(pruned, context(model))
    for name, scales in pruned.facts["weight_scales"].items():
        layer = next(one for one in weight_layers(pruned.value) if one.name == name)
        integers, kept, _ = stored(result.value, name)
        np.testing.assert_array_equal(kept, scales)

        expected = np.rint(read_weight(pruned.value, layer) / scales[:, None])
        np.testing.assert_array_equal(integers.reshape(expected.shape), expected)


def summed_error(model: Model, compressed: Model) -> float:
    """Sum each layer's relative error on unseen samples, everything before it compressed too."""
    from sparsify_onnx.compare import compare

    unseen = models.dataset(model.value, 100, seed=7)
    found = compare(model, compressed, unseen, 20)
    return sum(10 ** (-ratio / 10) for ratio in found.values())


@pytest.mark.parametrize("family", ["conv_net", "residual_net", "fire_net"])
def test_the_joint_solve_beats_prune_then_round(family: str, tmp_path: object) -> None:
    model = load(models.save(models.FAMILY[family](), tmp_path))  # type: ignore[arg-type]
    separate = SparseGPTModifier(sparsity=0.5, refit=False).apply(model, context(model))
    separate = QuantizationModifier(feedback=False, bias_correction=False).apply(separate, context(model))
    joint = EqualizationModifier().apply(model, context(model))
    joint = SparseGPTModifier(sparsity=0.5, round_weights=True).apply(joint, context(model))
    joint = QuantizationModifier().apply(joint, context(model))
    assert summed_error(model, joint) < 0.9 * summed_error(model, separate)


def test_masks_do_not_depend_on_how_channels_were_equalized(tmp_path: object) -> None:
    model = load(models.save(models.fire_net(), tmp_path))  # type: ignore[arg-type]
    plain = SparseGPTModifier(sparsity=0.5).apply(model, context(model))
    even = EqualizationModifier().apply(model, context(model))
    assert even.facts["channel_scales"]
    after = SparseGPTModifier(sparsity=0.5).apply(even, context(model))
    same = [
        float(np.mean((read_matrix(plain.value, layer) == 0) == (read_matrix(after.value, layer) == 0)))
        for layer in weight_layers(model.value)
        if layer.prunable
    ]
    assert min(same) > 0.9  # damping sees other units, nothing else does


def test_a_layer_alone_errs_less_than_with_all_before_it(tmp_path: object) -> None:
    model = load(models.save(models.residual_net(), tmp_path))  # type: ignore[arg-type]
    result = QuantizationModifier().apply(model, context(model))
    found = measure_alone(model, result, models.dataset(model.value, 50, seed=3), 10)
    assert found.keys() == {layer.name for layer in weight_layers(model.value)}
    assert all(20 < figures["isolated_db"] < 70 for figures in found.values())
    assert all(0 <= figures["saturation"] < 0.05 for figures in found.values())

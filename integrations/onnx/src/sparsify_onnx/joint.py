"""Solve one layer at once: mask, surviving weights, their int8 rounding, and the bias, all from one Hessian."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from sparsify_onnx.affine import read_bias, takes_bias
from sparsify_onnx.columns import inputs, kernel_positions, outputs
from sparsify_onnx.graph import Floats, WeightLayer
from sparsify_onnx.hessian import Matrix, Problem, Statistics, damped_problem, repair_problem, signal_to_noise
from sparsify_onnx.masks import Mask, Pattern, Structure, lay
from sparsify_onnx.refit import refit
from sparsify_onnx.rounding import LARGEST, channel_scales, descend, round_with_feedback
from sparsify_onnx.sparsegpt import prune, sparsegpt

HASTY = 0.01  # of the error: refitted no further than that to rank sparsities


@dataclass(frozen=True)
class Options:
    """Hold what `SparseGPTModifier` was asked for.

    sparsity: by layer. thorough: search for a better mask than SparseGPT's. rounded: onto the layer's int8 grid,
    in integers up to `most`. units: by layer, what one unit of each output was before equalizing; masks are chosen by
    errors in those units.
    """

    structure: Structure
    sparsity: Mapping[str, float]
    block_size: int = 128
    dampening: float = 0.001
    refit: bool = True
    keep_zeros: bool = True
    rounded: bool = False
    most: int = LARGEST
    thorough: bool = True
    units: Mapping[str, Floats] = field(default_factory=dict)

    def hasty(self) -> Options:
        """Give the options with which a solution costs little and still ranks sparsities rightly."""
        return replace(self, thorough=False, rounded=False)


def solve_layer(
    model: onnx.ModelProto, layer: WeightLayer, original: Floats, statistics: Statistics, options: Options
) -> dict[str, NDArray[Any]]:
    """Return `weight`, `bias`, `sqnr_db`, `dead` (inputs that were always zero), and `scales` where it was rounded."""
    weights, bias = original.astype(np.float64), read_bias(model, layer).astype(np.float64)
    units = np.asarray(options.units.get(layer.name, np.ones(len(weights))), dtype=np.float64)[:, None]
    scales = np.zeros(len(weights), dtype=np.float32)
    pattern, free = layer_pattern(layer, options.structure), takes_bias(model, layer) and options.refit
    slices = group_slices(layer, options.structure.zeros(options.sparsity[layer.name], weights.size))
    for index, (rows, zeros) in enumerate(slices):
        problem = _pose(statistics, index, weights[rows], free, options)
        whole = replace(problem, target=problem.target * units[rows])
        chosen = choose_weights(whole, pattern, zeros, (weights[rows] == 0) & options.keep_zeros, options)
        weights[rows] = chosen / units[rows]
        if options.rounded:
            weights[rows], scales[rows] = _round(weights[rows], problem.hessian, options.most)
        if free:
            bias[rows] = problem.mean_output - weights[rows] @ problem.mean_input
    shape = (layer.group, outputs(layer) // layer.group, -1)
    ratio = signal_to_noise(statistics, weights.reshape(shape), bias.reshape(shape[:2]))
    found = {"weight": weights.astype(np.float32), "bias": bias.astype(np.float32)}
    found |= {"scales": scales} if options.rounded else {}
    return {**found, "sqnr_db": np.array(ratio), "dead": np.array(_dead_inputs(statistics))}


def _pose(statistics: Statistics, index: int, weights: Matrix, free: bool, options: Options) -> Problem:
    gram, cross = statistics.gram[index], statistics.cross[index]
    if options.refit:
        return repair_problem(gram, cross, weights, options.dampening, free)
    return damped_problem(gram[:-1, :-1], weights, options.dampening)


def choose_weights(problem: Problem, pattern: Pattern, zeros: int, fixed: Mask, options: Options) -> Matrix:
    """Zero weights, and refit the others where asked to."""
    if options.refit and options.thorough:
        return prune(problem, pattern, zeros, fixed, options.block_size)
    swept, mask = sparsegpt(problem, pattern, zeros, fixed, options.block_size)
    return refit(problem, mask, swept, HASTY) if options.refit else swept


def _round(weights: Matrix, hessian: Matrix, most: int) -> tuple[Matrix, Floats]:
    """Round onto the grid on which QuantizationModifier stores weights.

    The weights are the optimum for their mask, so what rounding adds to the layer's error is (ŵ − w) H (ŵ − w)ᵀ.
    """
    scales = channel_scales(weights.astype(np.float32), "max", most=most)
    integers = round_with_feedback(weights.astype(np.float32), scales, hessian[None], most)
    integers = descend(integers, weights, scales, hessian, most=most)
    return integers.astype(np.float64) * scales[:, None].astype(np.float64), scales


def sparsity_of(matrix: Floats) -> float:
    """Return zeros ÷ weights."""
    return 1 - int(np.count_nonzero(matrix)) / matrix.size


def layer_pattern(layer: WeightLayer, structure: Structure) -> Pattern:
    """Lay a structure over one group of a layer."""
    kernel = kernel_positions(layer)
    return lay(structure, kernel, inputs(layer) // kernel)


def group_slices(layer: WeightLayer, zeros: int) -> Iterator[tuple[slice, int]]:
    """Yield the rows of each convolution group, and its part of the zeros; the parts add up exactly."""
    rows = outputs(layer) // layer.group
    for index in range(layer.group):
        due = round(zeros * (index + 1) / layer.group) - round(zeros * index / layer.group)
        yield slice(index * rows, (index + 1) * rows), due


def _dead_inputs(statistics: Statistics) -> int:
    return int(np.count_nonzero(np.diagonal(statistics.gram, axis1=1, axis2=2)[:, :-1] == 0))

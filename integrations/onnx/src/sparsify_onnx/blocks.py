"""Solve a layer that is too wide for one Hessian in blocks of inputs, each as if the others were not there.

What one block's inputs say about another's is not used, so a block stays near the layer's own weights instead of
repairing the dense model's output; the bias takes back the mean error of all blocks together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from sparsify_onnx.affine import read_bias, takes_bias
from sparsify_onnx.columns import inputs, outputs
from sparsify_onnx.graph import Floats, WeightLayer
from sparsify_onnx.hessian import Matrix, Problem, repair_problem
from sparsify_onnx.joint import Options, choose_weights, group_slices, layer_pattern
from sparsify_onnx.rounding import channel_scales, descend, round_with_feedback
from sparsify_onnx.sparsegpt import edges
from sparsify_onnx.symmetric import add_gram

NARROWEST = 64  # inputs of a block; fewer tell too little of one another


@dataclass
class Blocks:
    """Sum over rows: Σ x xᵀ by group and block of inputs, a constant 1 appended to x, and Σ y of the dense model."""

    edges: list[int]
    grams: list[list[Matrix]]
    total: Matrix


def empty_blocks(layer: WeightLayer, options: Options, most: int) -> Blocks:
    """Start with no rows; all sums together take about `most` bytes, and no block cuts a structure."""
    width = max(most // (8 * layer.group * inputs(layer)), NARROWEST)
    pattern = layer_pattern(layer, replace(options.structure, keep=0))
    cuts = edges(pattern, width)
    grams = [[np.zeros((stop - start + 1,) * 2) for start, stop in pairwise(cuts)] for _ in range(layer.group)]
    return Blocks(cuts, grams, np.zeros(outputs(layer)))


def add_to_blocks(blocks: Blocks, x: Floats, y: Floats) -> None:
    """Add rows × groups × inputs and rows × outputs."""
    ones = np.ones((len(x), 1), dtype=np.float32)
    for group, grams in enumerate(blocks.grams):
        for gram, (start, stop) in zip(grams, pairwise(blocks.edges), strict=True):
            add_gram(gram, np.hstack([x[:, group, start:stop], ones]))
    blocks.total += y.sum(axis=0, dtype=np.float64)


def solve_blocks(
    model: onnx.ModelProto, layer: WeightLayer, original: Floats, blocks: Blocks, options: Options
) -> dict[str, NDArray[Any]]:
    """Return what `solve_layer` does; the error of the whole layer is not known from its blocks and is NaN."""
    weights, bias = original.copy(), read_bias(model, layer)
    free = takes_bias(model, layer) and options.refit
    units = np.asarray(options.units.get(layer.name, np.ones(len(weights))), dtype=np.float64)[:, None]
    pattern, count = layer_pattern(layer, options.structure), blocks.grams[0][0][-1, -1]
    slices = group_slices(layer, options.structure.zeros(options.sparsity[layer.name], weights.size))
    for grams, (rows, zeros) in zip(blocks.grams, slices, strict=True):
        for part, due, problem in _problems(blocks, grams, original[rows], zeros, free, options):
            whole = replace(problem, target=problem.target * units[rows])
            fixed = (original[rows, part] == 0) & options.keep_zeros
            weights[rows, part] = choose_weights(whole, pattern[part], due, fixed, options) / units[rows]
    scales = channel_scales(weights, "max", most=options.most)
    for grams, (rows, _) in zip(blocks.grams, group_slices(layer, 0), strict=True):
        for part, _, problem in _problems(blocks, grams, original[rows], 0, free, options) if options.rounded else ():
            weights[rows, part] = _round(weights[rows, part], scales[rows], problem.hessian, options.most)
        if free and count:
            means = np.concatenate([gram[-1, :-1] for gram in grams]) / count
            bias[rows] = blocks.total[rows] / count - weights[rows] @ means
    dead = sum(int(np.count_nonzero(np.diag(gram)[:-1] == 0)) for grams in blocks.grams for gram in grams)
    found = {"weight": weights, "bias": bias, "sqnr_db": np.array(np.nan), "dead": np.array(dead)}
    return {**found, "scales": scales} if options.rounded else found


def _problems(
    blocks: Blocks, grams: list[Matrix], weights: Floats, zeros: int, free: bool, options: Options
) -> Iterator[tuple[slice, int, Problem]]:
    """Yield each block of one group with its share of the zeros; the layer's own outputs are what is wanted."""
    for gram, (start, stop) in zip(grams, pairwise(blocks.edges), strict=True):
        own = weights[:, start:stop].astype(np.float64)
        due = round(zeros * stop / blocks.edges[-1]) - round(zeros * start / blocks.edges[-1])
        yield slice(start, stop), due, repair_problem(gram, own @ gram[:-1], own, options.dampening, free)


def _round(weights: Floats, scales: Floats, hessian: Matrix, most: int) -> Floats:
    start = round_with_feedback(weights, scales, hessian[None], most)
    integers = descend(start, weights, scales, hessian, most=most)
    return np.asarray(integers * scales[:, None], dtype=np.float32)

"""Prune layer by layer: gather each layer's least-squares problem from the stream, solve it, write it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sparsify import Context, StageError

from sparsify_onnx.affine import read_bias, read_matrix, takes_bias, write_affine
from sparsify_onnx.columns import (
    input_rows,
    inputs,
    kernel_positions,
    output_rows,
    outputs,
    rows_per_sample,
    sample_rows,
)
from sparsify_onnx.graph import Floats, WeightLayer, reads
from sparsify_onnx.hessian import Statistics, add_rows, damped_problem, empty, repair_problem, signal_to_noise
from sparsify_onnx.masks import Pattern, Structure, lay
from sparsify_onnx.sparsegpt import prune, sparsegpt
from sparsify_onnx.stream import Moment, Stream

ROWS_PER_COLUMN = 40  # calibration rows asked for, for each column of a layer's matrix
ROWS_PER_SAMPLE = 64  # the least that one sample's rows are cut to
STATISTICS_BYTES = 512 << 20  # above it, parallel layers take turns


@dataclass(frozen=True)
class Options:
    """Hold what `SparseGPTModifier` was asked for."""

    structure: Structure
    sparsity: float
    block_size: int
    dampening: float
    refit: bool
    keep_zeros: bool


@dataclass(frozen=True)
class Pruned:
    """Report one layer: its share of zeros, its output's SQNR in dB, and its inputs that were zero on all samples."""

    sparsity: float
    sqnr_db: float | None = None
    dead: int = 0

    def facts(self) -> dict[str, float]:
        """Give what is known as a mapping."""
        return {"sparsity": self.sparsity} | ({} if self.sqnr_db is None else {"sqnr_db": self.sqnr_db})


def levels(model: onnx.ModelProto, layers: Sequence[WeightLayer]) -> list[list[WeightLayer]]:
    """Group layers so that none is upstream of another in its group, and groups follow one another.

    A group shares one pass over the samples; one whose statistics would be too large is split.
    """
    by_output = {layer.output: layer for layer in layers}
    depth: dict[str, int] = {}
    found: dict[int, list[WeightLayer]] = {}
    for node in model.graph.node:
        level = max((depth.get(name, 0) for name in reads(node)), default=0)
        for layer in (by_output[name] for name in node.output if name in by_output):
            found.setdefault(level, []).append(layer)
            level += 1
        depth.update(dict.fromkeys(node.output, level))
    return [part for level in sorted(found) for part in _split(found[level])]


def _split(layers: list[WeightLayer]) -> Iterator[list[WeightLayer]]:
    part: list[WeightLayer] = []
    held = 0
    for layer in layers:
        size = 8 * (inputs(layer) + 1) * (layer.group * (inputs(layer) + 1) + outputs(layer))
        if part and held + size > STATISTICS_BYTES:
            yield part
            part, held = [], 0
        part, held = [*part, layer], held + size
    if part:
        yield part


def prune_level(stream: Stream, level: Sequence[WeightLayer], options: Options) -> Iterator[tuple[WeightLayer, Pruned]]:
    """Prune the layers of one group, or take them from the checkpoint, writing each into the stream's pruned model.

    The samples are run even where every layer is taken from the checkpoint: what later layers see must not depend on
    where a run was interrupted.
    """
    context = stream.context
    matrices = {layer.name: finite_matrix(stream.compressed, layer) for layer in level}
    saved = {layer.name: context.checkpoint.load(layer.name) for layer in level}
    gathered = {layer.name: _nothing(layer) for layer in level if saved[layer.name] is None}
    names = ([layer.output for layer in level], [layer.input for layer in level])
    for moment in stream.run(*names, advance=True):
        for layer in level:
            if layer.name in gathered:
                _add(gathered[layer.name], layer, moment, context)
    for layer in level:
        kept = saved[layer.name]
        if kept is None:
            kept = _solve(stream.compressed, layer, matrices[layer.name], gathered.pop(layer.name), options)
            context.checkpoint.save(layer.name, kept)
        write_affine(stream.compressed, layer, kept["weight"], kept["bias"] if options.refit else None)
        yield layer, Pruned(sparsity_of(kept["weight"]), kept["sqnr_db"].item(), kept["dead"].item())


def finite_matrix(model: onnx.ModelProto, layer: WeightLayer) -> Floats:
    """Read a layer's matrix; raises StageError for NaN or infinite weights."""
    matrix = read_matrix(model, layer)
    if not np.isfinite(matrix).all():
        raise StageError(
            f"layer '{layer.name}' has NaN or infinite weights", fix="export the model again from a sound checkpoint"
        )
    return matrix


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


def _nothing(layer: WeightLayer) -> Statistics:
    return empty(layer.group, outputs(layer) // layer.group, inputs(layer))


def _add(statistics: Statistics, layer: WeightLayer, moment: Moment, context: Context) -> None:
    x, y = moment.compressed[layer.input], moment.dense[layer.output]
    for whose, tensor in (("inputs", x), ("outputs in the dense model", y)):
        if not np.isfinite(tensor).all():
            raise StageError(
                f"layer '{layer.name}': its {whose} hold NaN or infinite values (samples {moment.first} and on)",
                fix="check the samples and the preprocessing, or name the layers before this one in `ignore`",
            )
    cap = max(ROWS_PER_SAMPLE, ceil(ROWS_PER_COLUMN * inputs(layer) / len(context.calibration)))
    share = rows_per_sample(layer, y, moment.rows)
    rows = (
        sample_rows(share, moment.first, moment.samples, cap, context.seed)
        if share
        else np.arange(y.size // outputs(layer))
    )
    add_rows(statistics, input_rows(layer, x, y.shape, rows), output_rows(layer, y, rows))


def _solve(
    model: onnx.ModelProto, layer: WeightLayer, original: Floats, statistics: Statistics, options: Options
) -> dict[str, NDArray[Any]]:
    weights, bias = original.astype(np.float64), read_bias(model, layer).astype(np.float64)
    pattern, free = layer_pattern(layer, options.structure), takes_bias(model, layer)
    slices = group_slices(layer, options.structure.zeros(options.sparsity, weights.size))
    for index, (rows, zeros) in enumerate(slices):
        fixed = (weights[rows] == 0) & options.keep_zeros
        gram, cross = statistics.gram[index], statistics.cross[index]
        if options.refit:
            problem = repair_problem(gram, cross, weights[rows], options.dampening, free)
            weights[rows] = prune(problem, pattern, zeros, fixed, options.block_size)
            if free:
                bias[rows] = problem.mean_output - weights[rows] @ problem.mean_input
        else:
            problem = damped_problem(gram, weights[rows], options.dampening)
            weights[rows] = sparsegpt(problem, pattern, zeros, fixed, options.block_size)[0]
    shape = (layer.group, outputs(layer) // layer.group, -1)
    ratio = signal_to_noise(statistics, weights.reshape(shape), bias.reshape(shape[:2]))
    found = {"weight": weights.astype(np.float32), "bias": bias.astype(np.float32)}
    return {**found, "sqnr_db": np.array(ratio), "dead": np.array(_dead_inputs(statistics))}


def _dead_inputs(statistics: Statistics) -> int:
    return int(np.count_nonzero(np.diagonal(statistics.gram, axis1=1, axis2=2)[:, :-1] == 0))

"""Prune layer by layer: gather each layer's least-squares problem from the stream, solve it, write it back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sparsify import Context, StageError

from sparsify_onnx.affine import read_matrix, write_affine
from sparsify_onnx.blocks import Blocks, add_to_blocks, empty_blocks, solve_blocks
from sparsify_onnx.calibration import session_padding
from sparsify_onnx.columns import input_rows, inputs, output_rows, outputs, pieces, rows_per_sample, sample_rows
from sparsify_onnx.goals import Goal, find_goal
from sparsify_onnx.graph import Floats, WeightLayer, model_inputs, reads
from sparsify_onnx.hessian import Statistics, add_rows, empty
from sparsify_onnx.joint import Options, solve_layer, sparsity_of
from sparsify_onnx.memory import LAYER_BYTES, by_weight, share, solver_bytes
from sparsify_onnx.padding import Mask, Padding
from sparsify_onnx.sessions import open_model
from sparsify_onnx.stream import Moment, Stream, upstream

ROWS_PER_COLUMN = 40  # calibration rows asked for, for each column of a layer's matrix
ROWS_PER_SAMPLE = 64  # the least that one sample's rows are cut to
STATISTICS_BYTES = 512 << 20  # above it, parallel layers take turns
Gathered = Statistics | Blocks


@dataclass(frozen=True)
class Pruned:
    """Report one layer: its share of zeros, its output's SQNR in dB, and its inputs that were zero on all samples.

    scales: of the int8 grid that its rows were rounded to, where they were.
    """

    sparsity: float
    sqnr_db: float | None = None
    dead: int = 0
    scales: Floats | None = None

    def facts(self) -> dict[str, float]:
        """Give what is known as a mapping."""
        return {"sparsity": self.sparsity} | ({} if self.sqnr_db is None else {"sqnr_db": self.sqnr_db})


def solve(
    dense: onnx.ModelProto, layers: Sequence[WeightLayer], options: Options, context: Context
) -> tuple[onnx.ModelProto, dict[str, Pruned]]:
    """Prune a copy of a model layer by layer; finished layers are kept in `context.checkpoint`."""
    pruned = onnx.ModelProto()
    pruned.CopyFrom(dense)
    found: dict[str, Pruned] = {}
    with tempfile.TemporaryDirectory(prefix="sparsify-") as folder, context.progress("pruning", len(layers)) as advance:
        ends = {name for layer in layers for name in (layer.output, find_goal(dense, layer, ()).sum)}
        padding = _find_padding(dense, layers, context)
        carried = frozenset([padding.mask] if padding else [])
        stream = Stream(dense, pruned, context, Path(folder), upstream(pruned, sorted(ends)), carried)
        order = levels(pruned, layers, share(context, STATISTICS_BYTES, 4))
        _note_blocks(layers, context)
        for place, level in enumerate(order):
            later = [layer for follower in order[place + 1 :] for layer in follower]
            for layer, outcome in prune_level(stream, level, options, later, padding):
                found[layer.name] = outcome
                advance()
    return pruned, found


def _find_padding(model: onnx.ModelProto, layers: Sequence[WeightLayer], context: Context) -> Padding | None:
    names = list(dict.fromkeys(name for layer in layers for name in (layer.input, layer.output)))
    made = {name for node in model.graph.node for name in node.output}
    if len(model_inputs(model)) < 2 or not names:
        return None
    session = open_model(model, expose=[name for name in names if name in made], threads=context.threads)
    return session_padding(session, model, names, context.calibration)


def _real_rows(layer: WeightLayer, moment: Moment, padding: Padding | None) -> Mask | None:
    if padding is None or not {layer.input, layer.output} <= padding.tensors:
        return None
    return np.asarray(moment.dense[padding.mask][: moment.samples] != 0)


def in_blocks(layer: WeightLayer, context: Context) -> bool:
    """Say whether a layer is too wide to be solved whole in the memory allowed."""
    return solver_bytes(layer) > (context.memory * 3 // 4 or LAYER_BYTES)


def _note_blocks(layers: Sequence[WeightLayer], context: Context) -> None:
    wide = [layer for layer in layers if in_blocks(layer, context)]
    if wide:
        most = max(wide, key=solver_bytes)
        context.note(
            f"{len(wide)} layers are solved in blocks of inputs, less exactly, for want of memory: solved whole, "
            f"'{most.name}' would take {solver_bytes(most) / 1e6:.0f} MB"
        )


def levels(
    model: onnx.ModelProto, layers: Sequence[WeightLayer], most: int = STATISTICS_BYTES
) -> list[list[WeightLayer]]:
    """Group layers so that none is upstream of another in its group, and groups follow one another.

    A group shares one pass over the samples; one whose statistics would take more than `most` bytes is split.
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
    return [part for level in sorted(found) for part in by_weight(found[level], _statistics_bytes, most)]


def _statistics_bytes(layer: WeightLayer) -> int:
    return 8 * (inputs(layer) + 1) * (layer.group * (inputs(layer) + 1) + outputs(layer))


def prune_level(
    stream: Stream,
    level: Sequence[WeightLayer],
    options: Options,
    later: Sequence[WeightLayer],
    padding: Padding | None = None,
) -> Iterator[tuple[WeightLayer, Pruned]]:
    """Prune the layers of one group, or take them from the checkpoint, writing each into the stream's pruned model.

    The samples are run even where every layer is taken from the checkpoint: what later layers see must not depend on
    where a run was interrupted.
    """
    context = stream.context
    matrices = {layer.name: finite_matrix(stream.compressed, layer) for layer in level}
    saved = {layer.name: context.checkpoint.load(layer.name) for layer in level}
    gathered = {layer.name: _nothing(layer, options, context) for layer in level if saved[layer.name] is None}
    goals = {layer.name: _goal(stream, layer, (*level, *later), options) for layer in level}
    others = [goal.other for goal in goals.values() if goal.other]
    names = ([*(goal.sum for goal in goals.values()), *stream.carried], [*(layer.input for layer in level), *others])
    for moment in stream.run(*names, advance=True):
        for layer in level:
            if layer.name in gathered:
                real = _real_rows(layer, moment, padding)
                _add(gathered[layer.name], layer, goals[layer.name], moment, context, real)
    for layer in level:
        kept = saved[layer.name]
        if kept is None:
            kept = _solve(stream.compressed, layer, matrices[layer.name], gathered.pop(layer.name), options)
            context.checkpoint.save(layer.name, kept)
        write_affine(stream.compressed, layer, kept["weight"], kept["bias"] if options.refit else None)
        ratio = None if np.isnan(kept["sqnr_db"]) else kept["sqnr_db"].item()
        yield layer, Pruned(sparsity_of(kept["weight"]), ratio, kept["dead"].item(), kept.get("scales"))


def finite_matrix(model: onnx.ModelProto, layer: WeightLayer) -> Floats:
    """Read a layer's matrix; raises StageError for NaN or infinite weights."""
    matrix = read_matrix(model, layer)
    if not np.isfinite(matrix).all():
        raise StageError(
            f"layer '{layer.name}' has NaN or infinite weights", fix="export the model again from a sound checkpoint"
        )
    return matrix


def _nothing(layer: WeightLayer, options: Options, context: Context) -> Gathered:
    if in_blocks(layer, context):
        return empty_blocks(layer, options, share(context, STATISTICS_BYTES, 4))
    return empty(layer.group, outputs(layer) // layer.group, inputs(layer))


def _solve(
    model: onnx.ModelProto, layer: WeightLayer, original: Floats, gathered: Gathered, options: Options
) -> dict[str, NDArray[Any]]:
    if isinstance(gathered, Blocks):
        return solve_blocks(model, layer, original, gathered, options)
    return solve_layer(model, layer, original, gathered, options)


def _goal(stream: Stream, layer: WeightLayer, unsolved: Sequence[WeightLayer], options: Options) -> Goal:
    return find_goal(stream.dense, layer, unsolved) if options.refit else Goal(layer.output)


def _add(
    gathered: Gathered, layer: WeightLayer, goal: Goal, moment: Moment, context: Context, real: Mask | None
) -> None:
    other = moment.compressed[goal.other] if goal.other else None
    x, y = moment.compressed[layer.input], goal.wanted(moment.dense[goal.sum], other)
    for whose, tensor in (("inputs", x), ("outputs in the dense model", y)):
        if not np.isfinite(tensor).all():
            raise StageError(
                f"layer '{layer.name}': its {whose} hold NaN or infinite values (samples {moment.first} and on)",
                fix="check the samples and the preprocessing, or name the layers before this one in `ignore`",
            )
    cap = max(ROWS_PER_SAMPLE, ceil(ROWS_PER_COLUMN * inputs(layer) / len(context.calibration)))
    share = rows_per_sample(layer, y, moment.rows)
    rows = (
        sample_rows(share, moment.first, moment.samples, cap, context.seed, real)
        if share
        else np.arange(y.size // outputs(layer))
    )
    for part in pieces(rows, layer):
        found = input_rows(layer, x, y.shape, part), output_rows(layer, y, part)
        if isinstance(gathered, Blocks):
            add_to_blocks(gathered, *found)
        else:
            add_rows(gathered, *found)

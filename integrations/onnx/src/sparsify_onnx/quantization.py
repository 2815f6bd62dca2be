"""Quantize a float model to static INT8: decide where, measure, solve, write, and prove what was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sparsify import Context, Model, RequestError

from sparsify_onnx.affine import read_bias, write_affine
from sparsify_onnx.biases import spread_biases
from sparsify_onnx.calibration import Shapes, hessian_limit, in_order, measure, too_wide
from sparsify_onnx.columns import column_order
from sparsify_onnx.correction import measure_shifts
from sparsify_onnx.coverage import COVERAGE, check_ranges, look_at_samples
from sparsify_onnx.cpu import accuracy_note, cpu_features
from sparsify_onnx.equalization import EqualizationModifier
from sparsify_onnx.graph import Floats, WeightLayer, channel_axis, from_matrix, initializers, to_matrix
from sparsify_onnx.placement import Placement, place
from sparsify_onnx.preparation import ignored_nodes, own_constants, refuse_opset
from sparsify_onnx.qdq import Weight, write_qdq
from sparsify_onnx.ranges import Grid, Range, choose_range, grid
from sparsify_onnx.rounding import (
    LARGEST,
    REDUCED,
    bias_floor,
    channel_scales,
    descend_groups,
    round_nearest,
    round_with_feedback,
)
from sparsify_onnx.solution import Solution, fingerprint, pack, unpack
from sparsify_onnx.tables import round_tables
from sparsify_onnx.targets import as_names
from sparsify_onnx.threads import solver_threads
from sparsify_onnx.turning import turn_products
from sparsify_onnx.weight_only import WEIGHT_ONLY, round_weights

ON_GRID = 1e-3  # of a step: float32 holds an int8 multiple of its scale a hundred times better


class QuantizationModifier(BaseModel):
    """Round weights and activations to 8 bits, so that ONNX Runtime computes with integers.

    ranges: how an activation's range is chosen; percentile: its share in per cent, for `percentile` only. ignore: names
    or `re:` patterns of nodes left in float. weight_scale: how a channel's scale is chosen; feedback: round weights so
    that their errors cancel on the calibration inputs (GPTQ). learned_rounding: go on by coordinate descent. equalize:
    even out channels that share a grid, unless that was done before. bias_correction: take back what rounding shifts
    the means by. reduce_range: weights in -64..64, for x86 CPUs without VNNI, which add pairs of products in int16.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ranges: Literal["minmax", "percentile", "entropy", "mse"] = "mse"
    percentile: float = Field(default=99.99, gt=50, le=100)
    ignore: tuple[str, ...] = ()
    weight_scale: Literal["max", "mse"] = "max"
    feedback: bool = True
    learned_rounding: bool = False
    equalize: bool = True
    bias_correction: bool = True
    reduce_range: bool = False

    _names = field_validator("ignore", mode="before")(as_names)

    @property
    def most(self) -> int:
        """Return the largest integer that a weight may become."""
        return REDUCED if self.reduce_range else LARGEST

    def apply(self, model: Model, context: Context) -> Model:
        """Return the QDQ model; raises RequestError for a pattern without a match, StageError for NaN activations.

        facts: `quantized`, by layer `int8` or why not; `channel_scales`, what equalizing divided each layer's output
        channels by.
        """
        context = in_order(context)
        if self.equalize and "channel_scales" not in model.facts:
            model = EqualizationModifier().apply(model, context)
        shapes: Shapes = model.facts.get("shapes", {})
        value = own_constants(model.value)
        turn_products(value, shapes)
        spread_biases(value, shapes)
        refuse_opset(value)
        ignored = ignored_nodes(value, self.ignore)
        placement = place(value, ignored, shapes)
        if not placement.layers:
            raise RequestError(
                "no layer of the model can run in INT8: " + _count_reasons(placement.reasons),
                fix="remove QuantizationModifier from the recipe, or shorten its `ignore`",
            )
        name = f"int8-{fingerprint(model.value, self.model_dump_json(), context)}"
        held = context.checkpoint.load(name)
        given = model.facts.get("weight_scales", {})
        model = look_at_samples(Model("onnx", value, model.facts), context)  # the equalized copy is needed no more
        if held is None:
            with solver_threads(context.threads):
                solution = _solve(value, placement, self, context, shapes, given)
            context.checkpoint.save(name, pack(solution))
        else:
            solution = unpack(held)
        shares, warnings = check_ranges(value, solution.seen, solution.grids, context, shapes)
        _write_biases(value, placement, solution)
        written = write_qdq(value, place(value, ignored, shapes), solution.grids, solution.weights)
        tables = round_tables(written, {**placement.excluded, **dict.fromkeys(ignored, "ignored")})
        round_weights(written, [name for name, reason in placement.reasons.items() if reason == WEIGHT_ONLY], given)
        wide = [layer.name for layer in placement.layers if too_wide(layer, hessian_limit(context))]
        about = (accuracy_note(self.most, cpu_features()), *tables.notes())
        notes = (*_notes(placement, wide if self.feedback else []), *about, *warnings)
        for line in notes:
            context.note(line)
        facts = {
            **model.facts,
            "quantized": {**placement.reasons, **tables.reasons},
            "excluded": dict(placement.excluded),
            COVERAGE: {**model.facts[COVERAGE], **shares, "notes": [*model.facts[COVERAGE]["notes"], *warnings]},
            "notes": (*model.facts.get("notes", ()), *notes),
        }
        return Model("onnx", written, facts)


def _count_reasons(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in Counter(reasons.values()).items()) or "it has none"


def _solve(
    model: onnx.ModelProto,
    placement: Placement,
    options: QuantizationModifier,
    context: Context,
    shapes: Shapes,
    given: Mapping[str, Floats],
) -> Solution:
    """Measure ranges and Hessians, round weights, and correct biases.

    given: the scales of layers whose weights lie on their grid already; those are taken as they are.
    """
    free = {layer.name for layer in placement.layers} - given.keys()
    weights: dict[str, Weight] = {}
    grids: dict[str, Grid] = {}
    seen: dict[str, Range] = {}
    layers = [layer for layer in placement.layers if layer.name in free] if options.feedback else ()
    for statistics in measure(model, placement.tensors, layers, context, shapes):
        if not grids:
            ranges = partial(choose_range, method=options.ranges, percentile=options.percentile)
            grids = {name: grid(ranges(histogram)) for name, histogram in statistics.histograms.items()}
            seen = {name: histogram.bounds for name, histogram in statistics.histograms.items()}
            _keep_rounded(model, placement, grids, options.most, given, weights)
        due = [layer for layer in layers if layer.name in statistics.hessians]
        _round(model, placement, due, grids, options, statistics.hessians, weights)
    _round(model, placement, placement.layers, grids, options, {}, weights)
    biases = _biases(model, placement)
    if options.bias_correction:
        draft = onnx.ModelProto()
        draft.CopyFrom(model)
        draft = write_qdq(draft, placement, grids, weights)
        for name, shift in measure_shifts(model, draft, placement, context, shapes).items():
            biases[name] = biases.get(name, np.float32(0)) + shift
    return Solution(grids, seen, weights, biases)


def _keep_rounded(
    model: onnx.ModelProto,
    placement: Placement,
    grids: Mapping[str, Grid],
    most: int,
    given: Mapping[str, Floats],
    weights: dict[str, Weight],
) -> None:
    """Take weights that pruning has put onto their grid, unless an integer or the bias would overflow there."""
    held = initializers(model)
    for layer in placement.layers:
        scales = given.get(layer.name)
        if scales is None or (scales < _floor(model, layer, placement, grids)).any():
            continue
        steps = to_matrix(layer, numpy_helper.to_array(held[layer.weight])) / scales[:, None]
        integers = np.rint(steps)
        if np.abs(steps - integers).max(initial=0) < ON_GRID and np.abs(integers).max(initial=0) <= most:
            stored: NDArray[Any] = from_matrix(layer, integers.astype(np.float32))
            weights[layer.weight] = Weight(stored.astype(np.int8), scales, channel_axis(layer))


def _floor(
    model: onnx.ModelProto, layer: WeightLayer, placement: Placement, grids: Mapping[str, Grid]
) -> NDArray[Any] | float:
    if layer.bias is None:
        return 0.0
    return bias_floor(read_bias(model, layer), float(grids[placement.grid_of(layer.input)].scale))


def _round(
    model: onnx.ModelProto,
    placement: Placement,
    due: Iterable[WeightLayer],
    grids: Mapping[str, Grid],
    options: QuantizationModifier,
    hessians: Mapping[str, NDArray[Any]],
    weights: dict[str, Weight],
) -> None:
    """Round the layers due into `weights`: with feedback where there is a Hessian and no other layer shares them."""
    held = initializers(model)
    for layer in due:
        if layer.weight in weights:
            continue
        users = [user for user in placement.layers if user.weight == layer.weight]
        matrix = to_matrix(layer, numpy_helper.to_array(held[layer.weight]))
        floors = [np.broadcast_to(_floor(model, user, placement, grids), len(matrix)) for user in users]
        scales = channel_scales(matrix, options.weight_scale, np.max(floors, axis=0), options.most)
        integers = round_nearest(matrix, scales, options.most)
        if layer.name in hessians and len(users) == 1:
            order = column_order(layer)
            columns = matrix[:, order]
            integers[:, order] = round_with_feedback(columns, scales, hessians[layer.name], options.most)
            if options.learned_rounding:
                integers[:, order] = descend_groups(
                    integers[:, order], columns, scales, hessians[layer.name], options.most
                )
        stored: NDArray[Any] = from_matrix(layer, integers.astype(np.float32))
        weights[layer.weight] = Weight(stored.astype(np.int8), scales, channel_axis(layer))


def _biases(model: onnx.ModelProto, placement: Placement) -> dict[str, Floats]:
    return {layer.name: read_bias(model, layer) for layer in placement.layers if layer.bias is not None}


def _write_biases(model: onnx.ModelProto, placement: Placement, solution: Solution) -> None:
    for layer in placement.layers:
        if layer.name in solution.biases:
            matrix = to_matrix(layer, solution.weights[layer.weight].floats)[:, column_order(layer)]
            write_affine(model, layer, matrix, solution.biases[layer.name])


def _notes(placement: Placement, wide: Sequence[str]) -> tuple[str, ...]:
    left = {name: reason for name, reason in placement.reasons.items() if reason != "int8"}
    line = f"INT8: {len(placement.layers)} layers, {len(placement.tensors)} activation grids"
    lines = [line]
    lines += [f"left in float: {_count_reasons(left)}"] if left else []
    lines += [f"too wide for the memory or the time allowed, rounded to nearest: {', '.join(wide)}"] if wide else []
    lines += [f"{len(placement.exact)} INT8 layers give floats to heads and Softmax"] if placement.exact else []
    kept = _count_reasons(placement.excluded)
    return (*lines, f"not rounded between layers: {kept}") if placement.excluded else tuple(lines)

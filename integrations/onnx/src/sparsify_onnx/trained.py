"""Write INT8 models whose grids and weights were learned in training: placement and writer are those of one-shot."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from sparsify import Model

from sparsify_onnx.biases import spread_biases
from sparsify_onnx.placement import Placement, place
from sparsify_onnx.preparation import own_constants, refuse_opset
from sparsify_onnx.qdq import Weight, write_qdq
from sparsify_onnx.ranges import Grid
from sparsify_onnx.turning import turn_products


def prepare_int8(model: Model, ignored: Collection[str] = ()) -> tuple[onnx.ModelProto, Placement]:
    """Copy a loaded float model as the INT8 writer takes it, and decide what runs in INT8; `ignored` are node names."""
    shapes = model.facts.get("shapes", {})
    value = own_constants(model.value)
    turn_products(value, shapes)
    spread_biases(value, shapes)
    refuse_opset(value)
    return value, place(value, ignored, shapes)


def write_int8(
    value: onnx.ModelProto, placement: Placement, grids: Mapping[str, Grid], weights: Mapping[str, Weight], model: Model
) -> Model:
    """Write what `prepare_int8` gave as QDQ, with these grids by activation and integers by weight.

    Raises StageError where a bias does not fit int32. facts: those of `model`, and `quantized` and `excluded`.
    """
    written = write_qdq(value, placement, grids, weights)
    facts = {**model.facts, "quantized": dict(placement.reasons), "excluded": dict(placement.excluded)}
    return Model("onnx", written, facts)

"""Measure what rounding shifts the mean of each layer's outputs by, so that its bias can take the shift back.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), measured in one pass:
beside each rounded layer runs its float twin on the same input before rounding, so that every layer answers for its
own error alone and corrections do not pile up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from sparsify import Context

from sparsify_onnx.affine import takes_bias
from sparsify_onnx.calibration import Shapes, few, watch
from sparsify_onnx.columns import outputs
from sparsify_onnx.graph import WeightLayer, initializers, producers
from sparsify_onnx.memory import TWIN_BYTES, by_weight, float_bytes, share
from sparsify_onnx.placement import Placement

SUFFIX = "_float_twin"


def measure_shifts(
    model: onnx.ModelProto, written: onnx.ModelProto, placement: Placement, context: Context, shapes: Shapes
) -> dict[str, NDArray[np.float32]]:
    """Return float minus rounded mean of each output channel, for each layer of a float model that takes a bias."""
    found: dict[str, NDArray[np.float32]] = {}
    layers = [layer for layer in placement.layers if takes_bias(model, layer)]
    for group in by_weight(layers, float_bytes, share(context, TWIN_BYTES, 8)):
        found |= _shifts(model, written, group, placement, context, shapes)
    return found


def _shifts(
    model: onnx.ModelProto,
    written: onnx.ModelProto,
    layers: Sequence[WeightLayer],
    placement: Placement,
    context: Context,
    shapes: Shapes,
) -> dict[str, NDArray[np.float32]]:
    both, pairs = _with_twins(model, written, layers, placement)
    sums: dict[str, NDArray[np.float64]] = {}
    counts = dict.fromkeys(pairs, 0)
    names = [name for pair in pairs.values() for name in pair]
    sizes = {twin: shapes.get(layer.output, ()) for layer in layers for twin in pairs[layer.name]}
    for moment in watch(both, names, few(context), context, sizes, "correcting biases"):
        for layer in layers:
            rounded, exact = (moment.rows(name) for name in pairs[layer.name])
            axes = (0, *range(2, exact.ndim)) if layer.op == "Conv" else tuple(range(exact.ndim - 1))
            shift = (exact - rounded).sum(axis=axes, dtype=np.float64)
            sums[layer.name] = sums.get(layer.name, 0.0) + shift
            counts[layer.name] += exact.size // outputs(layer)
    return {name: (total / max(counts[name], 1)).astype(np.float32) for name, total in sums.items()}


def _with_twins(
    model: onnx.ModelProto, written: onnx.ModelProto, layers: Sequence[WeightLayer], placement: Placement
) -> tuple[onnx.ModelProto, dict[str, tuple[str, str]]]:
    """Copy a QDQ model with each layer's float node added; returns the outputs' names, rounded first."""
    both = onnx.ModelProto()
    both.CopyFrom(written)
    source, makers = producers(model), producers(both)
    nodes = {node.name: node for node in both.graph.node}
    added: dict[str, onnx.TensorProto] = {}
    pairs: dict[str, tuple[str, str]] = {}
    for layer in layers:
        rounded = nodes[layer.name]
        before = makers[makers[rounded.input[0]].input[0]].input[0]  # the tensor behind DequantizeLinear, Quantize…
        clip = source.get(layer.input)
        if clip is not None and clip.input[0] in placement.absorbed:
            before = _add(both, clip, before, f"{layer.name}_clip{SUFFIX}", model, added)
        twin = _add(both, source[layer.output], before, f"{layer.name}{SUFFIX}", model, added, layer.weight_input)
        pairs[layer.name] = (rounded.output[0], twin)
    both.graph.initializer.extend(added.values())
    return both, pairs


def _add(
    both: onnx.ModelProto,
    node: onnx.NodeProto,
    before: str,
    name: str,
    model: onnx.ModelProto,
    added: dict[str, onnx.TensorProto],
    weight_input: int = 1,
) -> str:
    """Add a float model's node that reads `before`, with constants of its own; returns its output's name."""
    held = initializers(model)
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.name = name
    twin.output[0] = name
    twin.input[1 - weight_input if weight_input < 2 else 0] = before
    for place, source in enumerate(twin.input):
        if source in held:
            copy = f"{source}{SUFFIX}"
            if copy not in added:
                added[copy] = numpy_helper.from_array(numpy_helper.to_array(held[source]), copy)
            twin.input[place] = copy
    both.graph.node.append(twin)
    return name

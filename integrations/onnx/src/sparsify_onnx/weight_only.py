"""Keep weights in 8 bits where there is no integer kernel for the layer: the file shrinks, the work stays float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from sparsify_onnx.fixed import PASSING
from sparsify_onnx.graph import (
    WEIGHTED,
    Floats,
    WeightLayer,
    channel_axis,
    drop_unread,
    initializers,
    producers,
    weight_layers,
)
from sparsify_onnx.rounding import LARGEST

WEIGHT_ONLY = "weight only: no INT8 kernel for transposed convolutions"
SUFFIX = "_weight_floats"


def round_weights(model: onnx.ModelProto, names: Iterable[str], given: Mapping[str, Floats] | None = None) -> int:
    """Round the weights of these layers in place, with a scale for each output; shared ones once. Counts layers.

    given: by layer, the scales of weights that lie on their grid already.
    """
    wanted = set(names)
    layers = [layer for layer in weight_layers(model) if layer.name in wanted]
    nodes = {node.name: node for node in model.graph.node}
    made: dict[str, NodeProto] = {}
    for layer in layers:
        if layer.weight not in made:
            made[layer.weight] = _rounded(model, layer, (given or {}).get(layer.name))
        nodes[layer.name].input[layer.weight_input] = made[layer.weight].output[0]
    ordered = [*made.values(), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    drop_unread(model, made)
    return len(layers)


def _rounded(model: onnx.ModelProto, layer: WeightLayer, given: Floats | None) -> NodeProto:
    """Add a layer's weight as int8 under a name of its own, and return the node that turns it back into floats."""
    axis = channel_axis(layer)
    weight = numpy_helper.to_array(initializers(model)[layer.weight])
    scales = given if given is not None and layer.group == 1 else axis_scales(weight, axis)
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    integers: NDArray[np.int8] = np.clip(np.rint(weight / scales.reshape(shape)), -LARGEST, LARGEST).astype(np.int8)
    names = [f"{layer.weight}_{part}" for part in ("quantized", "scale", "zero_point")]
    for name, array in zip(names, (integers, scales, np.zeros(len(scales), dtype=np.int8)), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    made = f"{layer.weight}{SUFFIX}"
    return helper.make_node("DequantizeLinear", names, [made], made, axis=axis)


def axis_scales(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Let the largest value at each index of an axis become 127."""
    largest = np.abs(weight).max(axis=tuple(place for place in range(weight.ndim) if place != axis), initial=0.0)
    return np.where(largest > 0, largest / LARGEST, 1.0).astype(np.float32)


def weight_only_layers(model: onnx.ModelProto) -> set[str]:
    """Name the layers of any model that multiply floats by a weight that is kept in integers."""
    held, makers = initializers(model), producers(model)
    found: set[str] = set()
    for node in model.graph.node:
        places = [place for place in (0, 1) if _is_kept(node, place, held, makers)] if node.op_type in WEIGHTED else []
        if len(places) == 1 and (node.op_type == "ConvTranspose" or not _is_rounded(node.input[1 - places[0]], makers)):
            found.add(node.name)
    return found


def _is_kept(node: NodeProto, place: int, held: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]) -> bool:
    maker = makers.get(node.input[place])
    return maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in held


def _is_rounded(name: str, makers: Mapping[str, NodeProto]) -> bool:
    maker = makers.get(name)
    while maker is not None and maker.op_type in PASSING:
        maker = makers.get(maker.input[0])
    return maker is not None and maker.op_type == "DequantizeLinear"

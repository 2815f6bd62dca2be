"""Look at an ONNX graph as a list of weighted layers, and read and write their weights as matrices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from sparsify_onnx.fixed import AFTER_SOFTMAX, CONVERSION, converts, weighs_softmax

Floats = NDArray[np.float32]
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class WeightLayer:
    """Describe one node that multiplies its input by a constant.

    weight_input is the weight's place among the node's inputs (1, or 0 for a MatMul with its weight on the left).
    reason is empty where pruning may touch the layer by default, else it says why not.
    """

    name: str
    op: str
    input: str
    output: str
    weight: str
    weight_input: int
    bias: str | None
    shape: tuple[int, ...]
    group: int
    attributes: Mapping[str, Any]
    reason: str

    @property
    def prunable(self) -> bool:
        """Say whether pruning touches this layer by default."""
        return not self.reason


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Map names to initializers."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Map tensor names to the nodes that read them."""
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    return readers


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Map tensor names to the node that writes them."""
    return {name: node for node in model.graph.node for name in node.output}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Read a node's attributes as Python values."""
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def reads(node: onnx.NodeProto) -> set[str]:
    """Name the tensors a node reads, those that its subgraphs take from outside included."""
    names = {name for name in node.input if name}
    for graph in subgraphs(node):
        made = {name for inner in graph.node for name in inner.output}
        made |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        names |= {name for inner in graph.node for name in reads(inner)} - made
        names |= {value.name for value in graph.output} - made
    return names


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the bodies of If, Loop and Scan."""
    for item in node.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            yield item.g
        yield from item.graphs


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, those in subgraphs included."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from walk(inner)


def model_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """List the inputs a caller must feed: graph inputs that no initializer fills (opset 8 and older listed both)."""
    filled = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in filled]


def weight_layers(model: onnx.ModelProto) -> tuple[WeightLayer, ...]:
    """List the weighted layers in topological order; the first and the last are not prunable, nor depthwise ones.

    Node names must be unique (`normalize.name_nodes`). A weight that anything else reads too is not prunable either,
    nor are weights that are arithmetic; the layer before those may be the last.
    """
    constants = initializers(model)
    found = [layer for node in model.graph.node if (layer := _layer(node, constants)) is not None]
    fixed = _after_softmax(model, found, constants)
    first, last = _ends(model, {layer.name: layer for layer in found if layer.name not in fixed}, fixed, constants)
    readers: dict[str, list[str]] = defaultdict(list)
    for node in model.graph.node:
        for name in reads(node) & constants.keys():
            readers[name].append(node.name)
    return tuple(
        _with_reason(
            layer,
            [name for name in readers[layer.weight] if name != layer.name],
            layer.name in first,
            layer.name in last,
            fixed.get(layer.name, ""),
        )
        for layer in found
    )


def _layer(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> WeightLayer | None:
    if node.op_type not in WEIGHTED:
        return None
    places = [index for index, name in enumerate(node.input[:2]) if name in constants]
    places = [index for index in places if len(constants[node.input[index]].dims) >= 2]
    if node.op_type != "MatMul":
        places = [index for index in places if index == 1]
    if len(places) != 1:
        return None
    place = places[0]
    weight = constants[node.input[place]]
    if weight.data_type != onnx.TensorProto.FLOAT:
        return None
    bias = node.input[2] if len(node.input) > 2 and node.input[2] in constants else None
    facts = attributes(node)
    return WeightLayer(
        name=node.name,
        op=node.op_type,
        input=node.input[1 - place],
        output=node.output[0],
        weight=weight.name,
        weight_input=place,
        bias=bias,
        shape=tuple(weight.dims),
        group=int(facts.get("group", 1)),
        attributes=facts,
        reason="",
    )


def _after_softmax(
    model: onnx.ModelProto, layers: list[WeightLayer], constants: Mapping[str, onnx.TensorProto]
) -> dict[str, str]:
    makers, nodes = producers(model), {node.name: node for node in model.graph.node}
    return {
        layer.name: AFTER_SOFTMAX
        for layer in layers
        if layer.op != "ConvTranspose" and weighs_softmax(nodes[layer.name], layer.weight_input, constants, makers)
    }


def _ends(
    model: onnx.ModelProto,
    layers: Mapping[str, WeightLayer],
    fixed: dict[str, str],
    constants: Mapping[str, onnx.TensorProto],
) -> tuple[set[str], set[str]]:
    """Find the layers with no weighted layer before them, and those with none after them.

    What follows all others and only converts coordinates is added to `fixed`.
    """
    reached: set[str] = set()  # tensors that a weighted layer precedes
    first: set[str] = set()
    for node in model.graph.node:
        after = not reached.isdisjoint(reads(node))
        if node.name in layers and not after:
            first.add(node.name)
        if after or node.name in layers:
            reached.update(node.output)
    leading: set[str] = set()  # tensors that a weighted layer follows
    last: set[str] = set()
    for node in reversed(model.graph.node):
        before = any(name in leading for name in node.output)
        weighted = node.name in layers
        if weighted and not before:
            if node.name not in first and converts(constants[layers[node.name].weight]):
                fixed[node.name] = CONVERSION
                weighted = False
            else:
                last.add(node.name)
        if before or weighted:
            leading |= reads(node)
    return first, last


def _with_reason(layer: WeightLayer, others: list[str], first: bool, last: bool, fixed: str) -> WeightLayer:
    reason = fixed
    if reason:
        return replace(layer, reason=reason)
    if layer.op in CONVOLUTIONS and layer.group > 1 and _group_inputs(layer) == 1:
        reason = "depthwise convolution"
    elif len(layer.shape) > 2 and layer.op in ("MatMul", "Gemm"):
        reason = "batched weight"
    elif others:
        reason = f"weight shared with {others[0]}"
    elif first:
        reason = "first layer"
    elif last:
        reason = "last layer"
    return replace(layer, reason=reason)


def _group_inputs(layer: WeightLayer) -> int:
    return layer.shape[1] if layer.op == "Conv" else layer.shape[0] // layer.group


def read_weight(model: onnx.ModelProto, layer: WeightLayer) -> Floats:
    """Copy a layer's weight as a matrix, outputs × (inputs · kernel), whatever way the node stores it."""
    return to_matrix(layer, numpy_helper.to_array(initializers(model)[layer.weight]))


def to_matrix(layer: WeightLayer, weight: NDArray[Any]) -> Floats:
    """Turn a stored 2-D (Gemm, MatMul) or 2+k-D (Conv) weight into outputs × (inputs of one group · kernel)."""
    if layer.op == "Conv":
        return np.array(weight.reshape(weight.shape[0], -1), dtype=np.float32)
    if layer.op == "ConvTranspose":
        return np.array(_by_group(layer, weight).swapaxes(1, 2), dtype=np.float32, order="C").reshape(
            layer.group * weight.shape[1], -1
        )
    outputs_first = layer.attributes.get("transB", 0) == 1 if layer.op == "Gemm" else layer.weight_input == 0
    return np.array(weight if outputs_first else weight.T, dtype=np.float32)


def from_matrix(layer: WeightLayer, matrix: Floats) -> Floats:
    """Undo `to_matrix`."""
    if layer.op == "Conv":
        return np.ascontiguousarray(matrix.reshape(layer.shape))
    if layer.op == "ConvTranspose":
        groups = matrix.reshape(layer.group, layer.shape[1], layer.shape[0] // layer.group, -1)
        return np.ascontiguousarray(groups.swapaxes(1, 2)).reshape(layer.shape)
    outputs_first = layer.attributes.get("transB", 0) == 1 if layer.op == "Gemm" else layer.weight_input == 0
    return np.ascontiguousarray(matrix if outputs_first else matrix.T)


def _by_group(layer: WeightLayer, weight: NDArray[Any]) -> NDArray[Any]:
    """View a transposed convolution's weight as groups × inputs × outputs × kernel."""
    return weight.reshape(layer.group, weight.shape[0] // layer.group, weight.shape[1], -1)


def write_initializer(model: onnx.ModelProto, name: str, array: NDArray[Any]) -> None:
    """Replace an initializer's values in place."""
    initializers(model)[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))


def drop_unread(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Remove those of these initializers that no node reads and that are no output."""
    used = {name for node in model.graph.node for name in reads(node)} | {value.name for value in model.graph.output}
    for index in reversed([i for i, item in enumerate(model.graph.initializer) if item.name in set(names) - used]):
        del model.graph.initializer[index]


def channel_axis(layer: WeightLayer) -> int:
    """Return the axis of the stored weight that runs over outputs, of one group in a ConvTranspose."""
    if layer.op == "Conv":
        return 0
    if layer.op == "ConvTranspose":
        return 1
    if layer.op == "Gemm":
        return 0 if layer.attributes.get("transB", 0) == 1 else 1
    return len(layer.shape) - 2 if layer.weight_input == 0 else len(layer.shape) - 1

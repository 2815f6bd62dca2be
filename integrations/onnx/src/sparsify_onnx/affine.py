"""Read and write a Conv, ConvTranspose, Gemm or MatMul as y = W x + b, wherever the graph keeps the two."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from sparsify_onnx.columns import column_order, outputs
from sparsify_onnx.fixed import FIXED
from sparsify_onnx.graph import Floats, WeightLayer, from_matrix, initializers, reads, to_matrix, write_initializer


def why_not(model: onnx.ModelProto, layer: WeightLayer) -> str:
    """Say why a layer cannot be pruned even where asked for by name, or return an empty string."""
    if layer.reason in FIXED:
        return f"it has {layer.reason}"
    if layer.op == "MatMul" and len(layer.shape) != 2:
        return "its weight has more than two axes"
    if layer.input in initializers(model):
        return "its input is constant"
    others = [node.name for node in _readers(model, layer.weight) if node.name != layer.name]
    if others:
        return f"its weight is shared with {others[0]}"
    node = _node(model, layer)
    if layer.op != "MatMul" and len(node.input) > 2 and node.input[2] and _row(model, node.input[2], layer) is None:
        return "its bias is not one constant per output"
    return ""


def read_matrix(model: onnx.ModelProto, layer: WeightLayer) -> Floats:
    """Read W as outputs × (kernel · inputs)."""
    stored = numpy_helper.to_array(initializers(model)[layer.weight])
    return to_matrix(layer, stored)[:, column_order(layer)] * np.float32(_factor(layer, "alpha"))


def read_bias(model: onnx.ModelProto, layer: WeightLayer) -> Floats:
    """Read b; zeros where there is none, and for MatMul, whose output is taken before the Add."""
    node = _node(model, layer)
    if layer.op == "MatMul" or len(node.input) < 3 or not node.input[2]:
        return np.zeros(outputs(layer), dtype=np.float32)
    row = _row(model, node.input[2], layer)
    if row is None:
        raise ValueError(f"layer '{layer.name}' should have been refused: {why_not(model, layer)}")
    return row * np.float32(_factor(layer, "beta"))


def takes_bias(model: onnx.ModelProto, layer: WeightLayer) -> bool:
    """Say whether a bias can be changed without a new node: Conv and Gemm take one, MatMul where an Add follows."""
    return layer.op != "MatMul" or adder(model, layer) is not None


def write_affine(model: onnx.ModelProto, layer: WeightLayer, matrix: Floats, bias: Floats | None = None) -> None:
    """Write W and, where given, b in place; for MatMul b is added to what the following Add adds."""
    node = _node(model, layer)
    stored = np.empty_like(matrix)
    stored[:, column_order(layer)] = matrix
    if layer.op == "Gemm":
        stored /= np.float32(_factor(layer, "alpha"))
    write_initializer(model, layer.weight, from_matrix(layer, stored))
    follower = adder(model, layer) if layer.op == "MatMul" else None
    if bias is None or (layer.op == "MatMul" and follower is None):
        return
    if follower is not None:
        place = 1 - list(follower.input).index(layer.output)
        added = numpy_helper.to_array(initializers(model)[follower.input[place]])
        _give(model, follower, place, (added + bias.reshape(added.shape)).astype(np.float32))
        return
    while len(node.input) < 3:
        node.input.append("")
    for item in [item for item in node.attribute if item.name == "beta"]:
        node.attribute.remove(item)
    _give(model, node, 2, bias.astype(np.float32))


def _factor(layer: WeightLayer, name: str) -> float:
    return float(layer.attributes.get(name, 1.0)) if layer.op == "Gemm" else 1.0


def _node(model: onnx.ModelProto, layer: WeightLayer) -> onnx.NodeProto:
    node: onnx.NodeProto = next(node for node in model.graph.node if layer.output in node.output)
    return node


def _readers(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in reads(node)]


def _row(model: onnx.ModelProto, name: str, layer: WeightLayer) -> Floats | None:
    """Read a constant that is one number, or one number per output, as a row."""
    tensor = initializers(model).get(name)
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    values: NDArray[np.float32] = numpy_helper.to_array(tensor)
    if values.size == 1:
        return np.full(outputs(layer), values.item(), dtype=np.float32)
    return values.reshape(-1) if values.shape[-1:] == (outputs(layer),) == (values.size,) else None


def adder(model: onnx.ModelProto, layer: WeightLayer) -> onnx.NodeProto | None:
    """Find the Add of one constant per output that alone reads a MatMul with its weight on the right."""
    readers = _readers(model, layer.output)
    if layer.weight_input == 0 or [node.op_type for node in readers] != ["Add"]:
        return None
    if layer.output in {value.name for value in model.graph.output}:
        return None
    others = [name for name in readers[0].input if name != layer.output]
    tensor = initializers(model).get(others[0]) if len(others) == 1 else None
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    return readers[0] if tensor.dims and tensor.dims[-1] == outputs(layer) == np.prod(tensor.dims) else None


def _give(model: onnx.ModelProto, node: onnx.NodeProto, place: int, values: Floats) -> None:
    """Set one of a node's constants, on a copy of its own where other nodes read it too."""
    name = node.input[place]
    if name and [reader.name for reader in _readers(model, name)] == [node.name]:
        write_initializer(model, name, values)
        return
    fresh, taken = f"{node.name}.bias", initializers(model)
    while fresh in taken:
        fresh += "_"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), fresh))
    node.input[place] = fresh

"""Write a model for DeepSparse: ConvInteger and MatMulInteger where QDQ stands, in the opset and IR that it reads.

DeepSparse 1.8.0 runs hardly anything of QDQ (supported fraction 0.0), and all of this form. Weights are uint8 around
128, as SparseML's exporter had them: int8 weights are accepted and slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from sparsify import Model

from sparsify_onnx.graph import attributes, initializers, producers
from sparsify_onnx.normalize import drop_dead
from sparsify_onnx.opsets import lower

FORMAT = "onnx-integer"
OPSET, IR = 17, 8  # the newest that DeepSparse 1.8.0 reads; tests/deepsparse tries both, and one above
ZERO_POINT = 128


@dataclass(frozen=True)
class Rounded:
    """Hold what a DequantizeLinear reads, by name: integers, with their values where constant, scale and zero point."""

    names: tuple[str, str, str]
    integers: NDArray[Any] | None
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]


def export(model: Model) -> Model:
    """Return a copy in the form that DeepSparse runs; float models only change their opset. Raises RequestError."""
    value = onnx.ModelProto()
    value.CopyFrom(model.value)
    value = lower(value, OPSET)
    value.ir_version = min(value.ir_version, IR)
    held, makers = initializers(value), producers(value)
    nodes = [made for node in value.graph.node for made in _integer(node, value.graph, held, makers) or [node]]
    del value.graph.node[:]
    value.graph.node.extend(nodes)
    _restore_weights(value)
    drop_dead(value)
    return Model(FORMAT, value, model.facts)


def _integer(
    node: NodeProto, graph: onnx.GraphProto, held: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]
) -> list[NodeProto] | None:
    """Give the integer nodes for a layer between DequantizeLinear nodes, None where it stays as it is."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    left, right = (_rounded(name, held, makers) for name in node.input[:2])
    if left is None or right is None or left.integers is not None or left.scale.size > 1:
        return None
    if right.integers is None and (node.op_type != "MatMul" or right.scale.size > 1):
        return None
    if node.op_type == "Gemm" and not _is_plain(node):
        return None
    return list(_layer(node, graph, left, right, held, makers))


def _rounded(name: str, held: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]) -> Rounded | None:
    """Read the DequantizeLinear that makes a tensor, where its scale and zero point are constants."""
    maker = makers.get(name)
    if maker is None or maker.op_type != "DequantizeLinear" or len(maker.input) != 3:
        return None
    if not {maker.input[1], maker.input[2]} <= held.keys():
        return None
    integers = numpy_helper.to_array(held[maker.input[0]]) if maker.input[0] in held else None
    scale, zero_point = (numpy_helper.to_array(held[which]) for which in maker.input[1:])
    return Rounded((maker.input[0], maker.input[1], maker.input[2]), integers, scale, zero_point)


def _is_plain(node: NodeProto) -> bool:
    facts = attributes(node)
    return not facts.get("transA", 0) and facts.get("alpha", 1.0) == facts.get("beta", 1.0) == 1.0


def _layer(
    node: NodeProto,
    graph: onnx.GraphProto,
    left: Rounded,
    right: Rounded,
    held: Mapping[str, TensorProto],
    makers: Mapping[str, NodeProto],
) -> Iterator[NodeProto]:
    name, kind = node.name, "ConvInteger" if node.op_type == "Conv" else "MatMulInteger"
    second, zero_point = right.names[0], right.names[2]
    if right.integers is not None:
        second, zero_point = f"{name}_weight_uint8", f"{name}_weight_zero_point"
        _keep(graph, second, _shifted(node, right.integers))
        _keep(graph, zero_point, np.array(ZERO_POINT, np.uint8))
    multiplied = helper.make_node(kind, [left.names[0], second, left.names[2], zero_point], [f"{name}_int32"], name)
    multiplied.attribute.extend(node.attribute if kind == "ConvInteger" else [])
    yield multiplied
    last, shape = multiplied.output[0], _channels(node, right)
    bias = _rounded(node.input[2], held, makers) if len(node.input) > 2 else None
    if bias is not None and bias.integers is not None:
        _keep(graph, f"{name}_bias_int32", bias.integers.astype(np.int32).reshape(shape))
        yield helper.make_node("Add", [last, f"{name}_bias_int32"], [f"{name}_sum"], f"{name}_add")
        last = f"{name}_sum"
    yield helper.make_node("Cast", [last], [f"{name}_cast"], f"{name}_cast", to=TensorProto.FLOAT)
    scale = (left.scale.astype(np.float64) * right.scale.astype(np.float64)).astype(np.float32)
    _keep(graph, f"{name}_rescale", scale.reshape(shape) if scale.size > 1 else scale.reshape(()))
    given = len(node.input) > 2 and bias is None  # a bias left in float
    output = f"{name}_scaled" if given else node.output[0]
    yield helper.make_node("Mul", [f"{name}_cast", f"{name}_rescale"], [output], f"{name}_mul")
    if given:
        _keep(graph, f"{name}_bias", numpy_helper.to_array(held[node.input[2]]).reshape(shape))
        yield helper.make_node("Add", [output, f"{name}_bias"], [node.output[0]], f"{name}_bias_add")


def _shifted(node: NodeProto, integers: NDArray[Any]) -> NDArray[np.uint8]:
    turned = integers.T if node.op_type == "Gemm" and attributes(node).get("transB", 0) else integers
    return np.ascontiguousarray(turned.astype(np.int16) + ZERO_POINT).astype(np.uint8)


def _channels(node: NodeProto, right: Rounded) -> tuple[int, ...]:
    """Give the shape in which a value a channel meets a layer's output."""
    spatial = right.integers.ndim - 2 if node.op_type == "Conv" and right.integers is not None else 0
    return (1, -1, *(1,) * spatial) if node.op_type == "Conv" else (-1,)


def _keep(graph: onnx.GraphProto, name: str, array: NDArray[Any]) -> None:
    graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))


def _restore_weights(model: onnx.ModelProto) -> None:
    """Write weights that are read as floats as floats: DeepSparse has no DequantizeLinear of constants."""
    held = initializers(model)
    kept = []
    for node in model.graph.node:
        rounded = _rounded(node.output[0], held, {node.output[0]: node})
        if rounded is None or rounded.integers is None:
            kept.append(node)
            continue
        shape = [1] * rounded.integers.ndim
        if rounded.scale.size > 1:
            shape[int(attributes(node).get("axis", 1))] = -1
        steps = rounded.integers.astype(np.float32) - rounded.zero_point.astype(np.float32).reshape(shape)
        _keep(model.graph, node.output[0], steps * rounded.scale.reshape(shape))
    del model.graph.node[:]
    model.graph.node.extend(kept)

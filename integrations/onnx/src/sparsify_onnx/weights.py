"""Find the initializer behind every weight, also behind (de)quantization, and view the model as a float one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from sparsify_onnx.fixed import is_small
from sparsify_onnx.graph import WEIGHTED, attributes, initializers, producers
from sparsify_onnx.storage import without_initializers
from sparsify_onnx.tables import scale_tables


@dataclass(frozen=True)
class Integer:
    """Say which float operator an integer one stands for, and where its weight, zero point and bias are."""

    op: str
    weight: int
    zero_point: int
    bias: int | None = None


INTEGER: Mapping[str, Integer] = {
    "QLinearConv": Integer("Conv", 3, 5, 8),
    "QLinearMatMul": Integer("MatMul", 3, 5),
    "QGemm": Integer("Gemm", 3, 5, 6),
    "ConvInteger": Integer("Conv", 1, 3),
    "MatMulInteger": Integer("MatMul", 1, 3),
    "DynamicQuantizeMatMul": Integer("MatMul", 1, 3),
    "MatMulIntegerToFloat": Integer("MatMul", 1, 5),
}
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
PARAMETERS = (*FLOATS, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)


@dataclass(frozen=True)
class Source:
    """Hold the initializer behind a weight.

    dims: as the layer sees it. zero_point: what stands for zero, along `axis` of the initializer where there are
    several. precision: what the layer's weight is rounded to.
    """

    tensor: TensorProto
    dims: tuple[int, ...]
    precision: str
    zero_point: TensorProto | None = None
    axis: int = 0

    def zeros(self) -> int:
        """Count the values that stand for zero."""
        held = numpy_helper.to_array(self.tensor)
        if self.zero_point is None:
            return int(held.size - np.count_nonzero(held))
        zero = numpy_helper.to_array(self.zero_point)
        if zero.size > 1:
            zero = zero.reshape([-1 if axis == self.axis % held.ndim else 1 for axis in range(held.ndim)])
        return int(np.count_nonzero(held == zero))


def weight_sources(model: onnx.ModelProto) -> dict[str, Source]:
    """Map every tensor that a layer reads as its weight to the initializer it comes from."""
    constants, makers = initializers(model), producers(model)
    found: dict[str, Source] = {}
    for node in model.graph.node:
        integer = INTEGER.get(node.op_type)
        if integer:
            source = _integer_source(node, integer, constants)
            found |= {node.input[integer.weight]: source} if source else {}
        for name in node.input[:2] if node.op_type in WEIGHTED else ():
            if source := trace(name, constants, makers):
                found[name] = source
    return found


def _integer_source(node: NodeProto, integer: Integer, constants: Mapping[str, TensorProto]) -> Source | None:
    tensor = constants.get(node.input[integer.weight])
    if tensor is None:
        return None
    zero = constants.get(node.input[integer.zero_point]) if integer.zero_point < len(node.input) else None
    outputs_first = integer.op == "Conv" or attributes(node).get("transB", 0) == 1
    axis = 0 if outputs_first else len(tensor.dims) - 1
    return Source(tensor, tuple(tensor.dims), kind(tensor), zero, axis)


def trace(name: str, constants: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]) -> Source | None:
    """Follow a tensor back through (de)quantization, Identity, Cast and Transpose to an initializer."""
    if name in constants:
        tensor = constants[name]
        return Source(tensor, tuple(tensor.dims), kind(tensor))
    node = makers.get(name)
    if node is None or node.op_type not in ("DequantizeLinear", "QuantizeLinear", "Identity", "Cast", "Transpose"):
        return None
    source = trace(node.input[0], constants, makers)
    if source is None:
        return None
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if node.op_type == "QuantizeLinear":  # trained with fake quantization: the file holds floats
        return replace(source, precision=kind(zero) if zero is not None else "uint8")
    if node.op_type == "DequantizeLinear" and source.tensor.data_type not in FLOATS:
        return replace(source, zero_point=zero, axis=int(attributes(node).get("axis", 1)))
    if node.op_type == "Transpose":
        order = attributes(node).get("perm", range(len(source.dims) - 1, -1, -1))
        return replace(source, dims=tuple(source.dims[axis] for axis in order))
    return source


def kind(tensor: TensorProto) -> str:
    """Name a tensor's element type as NumPy does: `float32`, `int8`."""
    name = str(TensorProto.DataType.Name(tensor.data_type)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def float_view(model: onnx.ModelProto, sources: Mapping[str, Source]) -> onnx.ModelProto:
    """Copy the graph as the float model it stands for: layers with weights that have a shape but no data.

    Weights of a few values keep them: they tell arithmetic from what was learned.
    """
    view = without_initializers(model)
    for node in view.graph.node:
        integer = INTEGER.get(node.op_type)
        if integer:
            bias = integer.bias if integer.bias is not None and integer.bias < len(node.input) else None
            inputs = [node.input[0], node.input[integer.weight], *([node.input[bias]] if bias else [])]
            node.op_type, node.domain = integer.op, ""
            del node.input[:]
            node.input.extend(inputs)
    for tensor in model.graph.initializer:
        stub = view.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        if is_small(tensor):
            stub.CopyFrom(tensor)
    stubs = initializers(view)
    for name, source in sources.items():
        stub = stubs.get(name) or view.graph.initializer.add(name=name)
        if stub.data_type != TensorProto.FLOAT or tuple(stub.dims) != source.dims:
            stub.Clear()
            stub.name, stub.data_type = name, TensorProto.FLOAT
            stub.dims.extend(source.dims)
    return view


def count_parameters(model: onnx.ModelProto, sources: Mapping[str, Source]) -> tuple[int, int]:
    """Count the parameters in the file and how many are zero; scales and zero points are none."""
    constants = initializers(model)
    behind = {source.tensor.name: source for source in sources.values()}
    scaling = scale_tables(model)
    biases: set[str] = set()
    for node in model.graph.node:
        integer = INTEGER.get(node.op_type)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scaling.update(node.input[1:])
            stored = constants.get(node.input[0])
            if stored is not None and stored.data_type not in FLOATS:
                zero = constants.get(node.input[2]) if len(node.input) > 2 else None
                axis = int(attributes(node).get("axis", 1))
                behind.setdefault(stored.name, Source(stored, tuple(stored.dims), kind(stored), zero, axis))
        elif integer:
            places = {0, integer.weight, integer.bias}
            scaling.update(name for place, name in enumerate(node.input) if place not in places)
            biases.update(node.input[integer.bias : integer.bias + 1] if integer.bias else ())
        elif node.op_type.startswith("QLinear"):
            scaling.update(name for name in node.input if name in constants and not constants[name].dims)
    total = zeros = 0
    for name, tensor in constants.items():
        if name in scaling or not (tensor.data_type in PARAMETERS or name in behind or name in biases):
            continue
        source = behind.get(name) or Source(tensor, tuple(tensor.dims), kind(tensor))
        total += int(np.prod(tensor.dims, dtype=np.int64))
        zeros += source.zeros()
    return total, zeros

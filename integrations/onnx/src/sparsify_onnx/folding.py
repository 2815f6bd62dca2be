"""Fold what is constant into weights: constant subgraphs, batch norms, scales and shifts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from sparsify_onnx.graph import attributes, initializers, reads, subgraphs, write_initializer
from sparsify_onnx.sessions import ORT_ERRORS, open_model
from sparsify_onnx.storage import weight_bytes, without_initializers

Doubles = NDArray[np.float64]
FOLDING = ("Conv", "ConvTranspose", "Gemm")
# what differs from run to run, and what has to stay visible
UNFOLDABLE = (
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"),
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
)
GROWTH_BYTES = 1 << 20  # folded tensors may outgrow their sources by this much, so that small files stay small


def fold_constants(model: onnx.ModelProto) -> int:
    """Compute in ONNX Runtime what depends on constants alone; what would grow the file is left as it is."""
    known, constant, later = set(initializers(model)), [], []
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if _is_constant(node, known, outputs):
            known.update(node.output)
            constant.append(node)
        else:
            later.append(node)
    made = {name for node in constant for name in node.output if name}
    values = _compute(model, constant, sorted(made & {name for node in later for name in reads(node)}))
    kept = [node for node in model.graph.node if values.keys().isdisjoint(node.output)]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in values.items())
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return len(values)


def _is_constant(node: NodeProto, known: set[str], outputs: set[str]) -> bool:
    return (
        node.domain in ("", "ai.onnx")
        and node.op_type not in UNFOLDABLE
        and len(node.output) == 1
        and bool(node.input)
        and known.issuperset(name for name in node.input if name)
        and outputs.isdisjoint(node.output)
        and not any(subgraphs(node))
    )


def _compute(model: onnx.ModelProto, nodes: list[NodeProto], wanted: list[str]) -> dict[str, NDArray[np.generic]]:
    """Run constant nodes; tensors that ONNX Runtime cannot give as arrays, or that are too large, are left out."""
    if not wanted:
        return {}
    used = {name for node in nodes for name in node.input}
    part = without_initializers(model)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:], part.graph.value_info[:]
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in used)
    limit = GROWTH_BYTES + weight_bytes(part)
    try:
        results = open_model(part, expose=wanted, threads=1).run(wanted, {})
    except ORT_ERRORS:
        return {}  # the session of the whole model reports what is wrong with it
    arrays = dict(zip(wanted, results, strict=True))
    return {
        name: a for name, a in arrays.items() if isinstance(a, np.ndarray) and a.dtype != object and a.nbytes <= limit
    }


@dataclass(frozen=True)
class Affine:
    """Hold y = scale · x + shift; arrays broadcast over the channel axis, or hold one value."""

    scale: Doubles
    shift: Doubles


def fold_affine(model: onnx.ModelProto) -> int:
    """Fold BatchNormalization, and Mul, Div, Add and Sub with per-channel constants, into the layer they follow."""
    constants = initializers(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in reads(node))
    readers.update(value.name for value in model.graph.output)
    gone: set[int] = set()
    for index, node in enumerate(model.graph.node):
        place = _layer_place(node, makers, readers)
        if place is None:
            continue
        layer = makers[node.input[place]]
        channels = _channels(layer, constants)
        affine = _affine(model, node, place, channels, _spatial(layer, constants)) if channels else None
        if affine is not None and _apply(model, layer, affine, channels):
            constants = initializers(model)
            layer.output[0] = node.output[0]
            makers[node.output[0]] = layer
            gone.add(index)
    kept = [node for index, node in enumerate(model.graph.node) if index not in gone]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return len(gone)


def _layer_place(node: NodeProto, makers: Mapping[str, NodeProto], readers: Mapping[str, int]) -> int | None:
    """Find which input of an affine node comes from a layer that nothing else reads."""
    if node.domain not in ("", "ai.onnx") or len([name for name in node.output if name]) != 1:
        return None
    places = {"BatchNormalization": (0,), "Mul": (0, 1), "Add": (0, 1), "Sub": (0,), "Div": (0,)}
    for place in places.get(node.op_type, ()):
        maker = makers.get(node.input[place])
        if maker is not None and maker.op_type in FOLDING and maker.domain in ("", "ai.onnx"):
            return place if readers[node.input[place]] == 1 else None
    return None


def _channels(layer: NodeProto, constants: Mapping[str, TensorProto]) -> int:
    """Return the number of outputs of a layer with constant weight and bias, or 0."""
    if not all(name in constants for name in layer.input[1:] if name):
        return 0
    dims, facts = constants[layer.input[1]].dims, attributes(layer)
    if layer.op_type == "ConvTranspose":
        return int(dims[1]) * int(facts.get("group", 1))
    return int(dims[0] if layer.op_type == "Conv" or facts.get("transB", 0) else dims[1])


def _spatial(layer: NodeProto, constants: Mapping[str, TensorProto]) -> int:
    return 0 if layer.op_type == "Gemm" else len(constants[layer.input[1]].dims) - 2


def _affine(model: onnx.ModelProto, node: NodeProto, place: int, channels: int, spatial: int) -> Affine | None:
    if node.op_type == "BatchNormalization":
        return _batch_norm(model, node)
    held = read_constant(model, node.input[1 - place])
    if held is None or not _per_channel(held.shape, channels, spatial):
        return None
    value, one, zero = held.reshape(-1), np.ones(1), np.zeros(1)
    if node.op_type == "Mul":
        return Affine(value, zero)
    if node.op_type == "Div":
        return Affine(1 / value, zero) if value.all() else None
    return Affine(one, value if node.op_type == "Add" else -value)


def _per_channel(shape: tuple[int, ...], channels: int, spatial: int) -> bool:
    """Say whether broadcasting this shape over (N, C, spatial…) gives one value a channel, and no new axis."""
    full = (1, channels) + (1,) * spatial
    return len(shape) <= len(full) and all(
        size in (1, most) for size, most in zip(reversed(shape), reversed(full), strict=False)
    )


def _batch_norm(model: onnx.ModelProto, node: NodeProto) -> Affine | None:
    facts = attributes(node)
    held = [read_constant(model, name) for name in node.input[1:5]]
    if facts.get("training_mode", 0) or len(held) < 4 or any(array is None for array in held):
        return None
    gamma, beta, mean, variance = (np.asarray(array) for array in held)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = gamma / np.sqrt(variance + facts.get("epsilon", 1e-5))
    return Affine(scale, beta - mean * scale)


def _apply(model: onnx.ModelProto, layer: NodeProto, affine: Affine, channels: int) -> bool:
    """Fold into the layer's weight and bias; says no where float32 would not hold the result."""
    weight = read_constant(model, layer.input[1])
    has_bias = len(layer.input) > 2 and bool(layer.input[2])
    bias = read_constant(model, layer.input[2]) if has_bias else np.zeros(1)
    if weight is None or bias is None or bias.shape not in ((), (1,), (1, 1), (channels,), (1, channels)):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        weight = weight * _along_outputs(layer, weight.shape, np.broadcast_to(affine.scale, channels))
        bias = np.broadcast_to(bias.reshape(-1) * affine.scale + affine.shift, channels)
        if not (np.isfinite(weight.astype(np.float32)).all() and np.isfinite(bias.astype(np.float32)).all()):
            return False
    store_constant(model, layer, 1, weight)
    store_constant(model, layer, 2, bias)
    return True


def _along_outputs(layer: NodeProto, shape: tuple[int, ...], scale: Doubles) -> Doubles:
    """Shape one factor an output so that it broadcasts over the stored weight."""
    facts = attributes(layer)
    if layer.op_type == "ConvTranspose":  # inputs × outputs of one group × kernel
        groups = int(facts.get("group", 1))
        rows = np.repeat(scale.reshape(groups, -1), shape[0] // groups, axis=0)
        return rows.reshape(shape[0], shape[1], *(1,) * (len(shape) - 2))
    outputs_first = layer.op_type == "Conv" or bool(facts.get("transB", 0))
    return scale.reshape(-1, *(1,) * (len(shape) - 1)) if outputs_first else scale.reshape(1, -1)


def read_constant(model: onnx.ModelProto, name: str) -> Doubles | None:
    """Read a float32 initializer in double precision, or None where the name is none."""
    tensor = initializers(model).get(name)
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return None
    return numpy_helper.to_array(tensor).astype(np.float64)


def store_constant(model: onnx.ModelProto, node: NodeProto, place: int, values: Doubles) -> None:
    """Give a node a constant: in place where no other node reads it, else under a new name."""
    array = values.astype(np.float32)
    name = node.input[place] if place < len(node.input) else ""
    uses = sum(name in reads(other) for other in model.graph.node) if name else 0
    if uses == 1 and list(node.input).count(name) == 1 and name not in {value.name for value in model.graph.output}:
        write_initializer(model, name, array)
        return
    base = f"{node.input[1]}.folded" if place == 1 else f"{node.input[1]}.bias"
    taken = {tensor.name for tensor in model.graph.initializer} | {n for o in model.graph.node for n in o.output}
    taken |= {value.name for value in model.graph.input}
    fresh = next(option for n in count() if (option := base if n == 0 else f"{base}_{n}") not in taken)
    model.graph.initializer.append(numpy_helper.from_array(array, fresh))
    node.input.extend([""] * (place + 1 - len(node.input)))
    node.input[place] = fresh

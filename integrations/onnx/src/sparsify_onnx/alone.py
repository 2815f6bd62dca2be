"""Compress one layer alone: what its weights and its input's grid do to its own output, and to the model's.

Beside a layer of the original model runs its twin, with the compressed weights taken back to the units they had before
equalizing, on the same input rounded to the compressed model's grid. The grid of its output counts for the next layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from sparsify import Context, Dataset, Model

from sparsify_onnx.affine import adder
from sparsify_onnx.calibration import watch
from sparsify_onnx.describe import describe
from sparsify_onnx.drift import affordable, drift_from, spread
from sparsify_onnx.equalize import rescale
from sparsify_onnx.graph import Floats, WeightLayer, initializers, producers, weight_layers
from sparsify_onnx.memory import TWIN_BYTES, by_weight, float_bytes
from sparsify_onnx.ranges import LEVELS

MARK = "_alone"


@dataclass(frozen=True)
class Parts:
    """Hold what a compressed model made of a layer; `grid` is the scale and zero point of its input, where rounded."""

    weight: Floats
    bias: Floats | None
    grid: tuple[NDArray[Any], NDArray[Any]] | None
    shift: Floats | None
    outputs: Floats | None
    inputs: Floats | None


def find_parts(reference: Model, candidate: Model, names: Collection[str] = ()) -> dict[str, tuple[WeightLayer, Parts]]:
    """Match the layers of both models by name, all or those named; what the candidate no longer has is left out."""
    model: onnx.ModelProto = candidate.value
    nodes, makers, held = {node.name: node for node in model.graph.node}, producers(model), initializers(model)
    scales = [candidate.facts.get(key, {}) for key in ("channel_scales", "input_scales")]
    found: dict[str, tuple[WeightLayer, Parts]] = {}
    for layer in weight_layers(reference.value):
        if names and layer.name not in names:
            continue
        node = nodes.get(layer.name)
        weight = _floats(node.input[layer.weight_input], makers, held) if node else None
        if (
            node is None
            or weight is None
            or weight.shape != layer.shape
            or layer.input in initializers(reference.value)
        ):
            continue
        bias = _floats(node.input[2], makers, held) if layer.op != "MatMul" and len(node.input) > 2 else None
        maker = makers.get(node.input[1 - layer.weight_input])
        grid = None
        if maker is not None and maker.op_type == "DequantizeLinear" and node.input[1] in makers:
            grid = (numpy_helper.to_array(held[maker.input[1]]), numpy_helper.to_array(held[maker.input[2]]))
        shift = _shift(reference.value, layer, nodes, held) if layer.op == "MatMul" else None
        found[layer.name] = layer, Parts(weight, bias, grid, shift, *(one.get(layer.name) for one in scales))
    return found


def _floats(name: str, makers: Mapping[str, onnx.NodeProto], held: Mapping[str, onnx.TensorProto]) -> Floats | None:
    if name in held:
        return np.asarray(numpy_helper.to_array(held[name]), dtype=np.float32)
    node = makers.get(name)
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in held:
        return None
    values, scale, *_ = (numpy_helper.to_array(held[one]) for one in node.input)
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    shape = [1] * values.ndim
    if scale.size > 1:
        shape[axis] = -1
    return np.asarray(values.astype(np.float32) * scale.reshape(shape if scale.size > 1 else ()), dtype=np.float32)


def _shift(
    reference: onnx.ModelProto,
    layer: WeightLayer,
    nodes: Mapping[str, onnx.NodeProto],
    held: Mapping[str, onnx.TensorProto],
) -> Floats | None:
    """Return what the constant after a MatMul was changed by."""
    before = adder(reference, layer)
    after = nodes.get(before.name) if before is not None else None
    if before is None or after is None:
        return None
    known = initializers(reference)
    old = [numpy_helper.to_array(known[name]) for name in before.input if name in known]
    new = [numpy_helper.to_array(held[name]) for name in after.input if name in held]
    return np.asarray(new[0].reshape(-1) - old[0].reshape(-1), dtype=np.float32) if old and new else None


def add_twin(model: onnx.ModelProto, layer: WeightLayer, parts: Parts) -> str:
    """Add a layer's compressed twin to a float model, fed by the same tensor; returns its output's name."""
    name, place = f"{layer.name}{MARK}", _place_of(model, layer)
    original, added = model.graph.node[place], list[onnx.NodeProto]()

    def constant(what: str, array: NDArray[Any]) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{name}_{what}"))
        return f"{name}_{what}"

    def node(kind: str, what: str, *inputs: str) -> str:
        added.append(helper.make_node(kind, inputs, [f"{name}_{what}"], f"{name}_{what}"))
        return f"{name}_{what}"

    source = layer.input
    if parts.grid is not None:
        scale, zero = constant("scale", parts.grid[0]), constant("zero", parts.grid[1])
        shape = (-1, *[1] * (len(layer.shape) - 2)) if layer.op == "Conv" else (-1,)
        units = None if parts.inputs is None else parts.inputs.reshape(shape)
        source = source if units is None else node("Div", "in", source, constant("units", units))
        source = node("DequantizeLinear", "dq", node("QuantizeLinear", "q", source, scale, zero), scale, zero)
        source = source if units is None else node("Mul", "out", source, f"{name}_units")
    twin = onnx.NodeProto()
    twin.CopyFrom(original)
    twin.name = twin.output[0] = name
    twin.input[1 - layer.weight_input] = source
    twin.input[layer.weight_input] = constant("weight", parts.weight)
    if parts.bias is not None:
        del twin.input[2:]
        twin.input.append(constant("bias", parts.bias))
    added.append(twin)
    own = replace(layer, weight=f"{name}_weight", bias=f"{name}_bias" if parts.bias is not None else None)
    rescale(model, own, _inverse(parts.outputs), _inverse(parts.inputs))
    result = name if parts.shift is None else node("Add", "shifted", name, constant("shift", parts.shift))
    for one in reversed(added):
        model.graph.node.insert(place, one)
    return result


def _place_of(model: onnx.ModelProto, layer: WeightLayer) -> int:
    return next(place for place, node in enumerate(model.graph.node) if layer.output in node.output)


def _inverse(factors: Floats | None) -> NDArray[np.float64] | None:
    return None if factors is None else 1.0 / factors.astype(np.float64)


def measure_alone(reference: Model, candidate: Model, dataset: Dataset, batch_size: int) -> dict[str, dict[str, float]]:
    """Return by layer `isolated_db`, the SQNR of its output when it alone is compressed, and `saturation`.

    saturation is the share of its input's values beyond the grid. Memory is one batch of the layers' tensors, and the
    weights of some layers.
    """
    figures: dict[str, dict[str, float]] = {}
    for group in by_weight(weight_layers(reference.value), float_bytes, TWIN_BYTES):
        figures |= _measure_group(reference, candidate, [layer.name for layer in group], dataset, batch_size)
    return figures


def _measure_group(
    reference: Model, candidate: Model, wanted: Collection[str], dataset: Dataset, batch_size: int
) -> dict[str, dict[str, float]]:
    found = find_parts(reference, candidate, wanted)
    if not found:
        return {}
    both = onnx.ModelProto()
    both.CopyFrom(reference.value)
    twins = {name: add_twin(both, layer, parts) for name, (layer, parts) in found.items()}
    names = {name for layer, _ in found.values() for name in (layer.input, layer.output)} | set(twins.values())
    sums = {name: np.zeros(4) for name in twins}
    shapes = dict(reference.facts.get("shapes", {}))
    shapes |= {twins[name]: shapes.get(layer.output, ()) for name, (layer, _) in found.items()}
    for moment in watch(
        both, sorted(names), dataset, Context(dataset, batch_size=batch_size), shapes, "tracing layers"
    ):
        for name, (layer, parts) in found.items():
            exact, twin = moment.tensors[layer.output], moment.tensors[twins[name]]
            beyond, count = _beyond(moment.tensors[layer.input], layer, parts)
            error = exact.astype(np.float64) - twin
            sums[name] += (float(np.vdot(exact, exact)), float(np.vdot(error, error)), beyond, count)
    return {name: _figures(*total.tolist()) for name, total in sums.items()}


def _beyond(values: NDArray[np.float32], layer: WeightLayer, parts: Parts) -> tuple[int, int]:
    if parts.grid is None:
        return 0, 0
    shape = (-1, *[1] * (values.ndim - 2)) if layer.op == "Conv" else (-1,)
    scaled = values if parts.inputs is None else values / parts.inputs.reshape(shape)
    scale, zero = float(parts.grid[0]), int(parts.grid[1])
    low, high = (0 - zero - 0.5) * scale, (LEVELS - zero + 0.5) * scale
    if zero == 0:  # a Relu that the grid has taken in: what is below zero is cut off on purpose
        low = -np.inf
    return int(np.count_nonzero((scaled < low) | (scaled > high))), values.size


def _figures(signal: float, noise: float, beyond: float, count: float) -> dict[str, float]:
    limit = 200.0  # what identical outputs are given: JSON has no infinity
    ratio = 10 * np.log10(signal / noise) if signal and noise else (limit if not noise else -limit)
    found = {"isolated_db": float(np.clip(ratio, -limit, limit))}
    return found | ({"saturation": beyond / count} if count else {})


def each_alone(reference: Model, candidate: Model, names: Collection[str] = ()) -> Iterator[tuple[str, Model]]:
    """Yield the original model with one layer compressed, layer by layer; all of them, or those named."""
    for name, (layer, parts) in find_parts(reference, candidate, names).items():
        changed = onnx.ModelProto()
        changed.CopyFrom(reference.value)
        twin = add_twin(changed, layer, parts)
        for node in changed.graph.node:
            if not node.name.startswith(f"{layer.name}{MARK}"):
                node.input[:] = [twin if source == layer.output else source for source in node.input]
        for value in changed.graph.output:
            if value.name == layer.output:  # keep the output's name: the twin takes it over
                _rename(changed, layer.output, f"{layer.output}_dense")
                _rename(changed, twin, value.name)
        yield name, Model("onnx", changed, reference.facts)


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def drifts_alone(reference: Model, candidate: Model, context: Context) -> dict[str, float]:
    """Return how far the outputs drift when one layer alone is compressed, by layer; see `drift_from`."""
    macs = sum(layer.macs for layer in describe(reference).layers)
    count = affordable(macs, len(weight_layers(reference.value)))
    drift = drift_from(reference.value, spread(context.calibration, count), context)
    return {name: drift(model.value) for name, model in each_alone(reference, candidate)}

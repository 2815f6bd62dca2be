"""Even out the channels that share one activation grid, by moving factors from one layer's weights to the next's.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), with the ranges measured
on calibration data: whatever lies between two layers must pass a positive factor per channel through unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from sparsify_onnx.graph import (
    WeightLayer,
    attributes,
    channel_axis,
    initializers,
    reads,
    weight_layers,
    write_initializer,
)

HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool")
FLATTENING = ("Flatten", "Reshape", "Squeeze")
STRENGTH = 0.5  # 1 evens activations out fully, and their unevenness goes into the next layer's weights
LARGEST_FACTOR = 8.0  # by which a small channel is blown up
OUTLIER = 4.0  # times the median: no channel may stay further out, for it would take the grid of all others
Shapes = Mapping[str, tuple[int, ...]]
Floats = NDArray[np.float32]
Ids = NDArray[np.intp]


@dataclass
class Channels:
    """Number the channels whose factors may be chosen: tensors whose channels must scale alike share numbers."""

    parents: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    numbers: dict[str, Ids] = field(default_factory=dict)

    def fresh(self, count: int) -> Ids:
        """Make new numbers."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, number: int) -> int:
        """Return the number that stands for all that are tied to this one."""
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def tie(self, left: Ids, right: Ids) -> None:
        """Make two lists of channels scale alike."""
        for first, second in zip(left.tolist(), right.tolist(), strict=True):
            low, high = sorted((self.root(first), self.root(second)))
            self.parents[high] = low

    def freeze(self, names: Iterable[str]) -> None:
        """Keep the factors of these tensors' channels at one."""
        for name in names:
            self.frozen.update(self.numbers.get(name, np.empty(0, np.intp)).tolist())

    def roots(self, name: str) -> Ids:
        """Return for each channel of a tensor the number it is tied to."""
        return np.array([self.root(number) for number in self.numbers[name].tolist()], dtype=np.intp)


def find_channels(model: onnx.ModelProto, shapes: Shapes, rescaled: Collection[str]) -> Channels:
    """Follow channels through the graph between the layers named in `rescaled`.

    shapes: of one sample; without them, channels are followed neither through Add nor where axes are flattened away.
    """
    constants = initializers(model)
    layers = {layer.name: layer for layer in weight_layers(model)}
    shared = _shared(model)
    found = Channels()
    for node in model.graph.node:
        layer = layers.get(node.name)
        made: Ids | None = None
        if layer is not None and layer.op in ("Conv", "Gemm") and not layer.attributes.get("transA", 0):
            made = found.fresh(layer.shape[channel_axis(layer)])
            known = layer.bias is not None or len(node.input) < 3 or not node.input[2]
            passes = (
                layer.name in rescaled
                and known
                and not shared & {layer.weight, layer.bias}
                and layer.input not in constants
            )
        else:
            made = _through(node, found, constants, shapes)
            passes = made is not None
        if made is not None:
            found.numbers[node.output[0]] = made
        if not passes and node.op_type not in ("Shape", "Size"):
            found.freeze([*reads(node), *node.output])
        found.freeze(reads(node).difference(node.input))
    found.freeze(value.name for value in model.graph.output)
    return found


def _shared(model: onnx.ModelProto) -> set[str]:
    seen: set[str] = set()
    twice: set[str] = set()
    for node in model.graph.node:
        twice |= reads(node) & seen
        seen |= reads(node)
    return twice


def _through(
    node: onnx.NodeProto, found: Channels, constants: Mapping[str, onnx.TensorProto], shapes: Shapes
) -> Ids | None:
    """Return the numbers of the channels a node puts out, or None where it does not pass factors through."""
    sources = [found.numbers.get(name) for name in node.input]
    first = sources[0] if sources else None
    facts = attributes(node)
    if node.op_type == "Concat" and facts["axis"] == 1 and all(numbers is not None for numbers in sources):
        return np.concatenate([numbers for numbers in sources if numbers is not None])
    if first is None:
        return None
    if node.op_type in HOMOGENEOUS:
        return first
    before, after = (shapes.get(name, ()) for name in (node.input[0], node.output[0]))
    if node.op_type in FLATTENING:
        alone = len(first) == int(np.prod(before[1:])) == int(np.prod(after[1:])) if before and after else False
        return first if alone and after[1] == len(first) else None
    if node.op_type == "Add":
        second = sources[1]
        if second is None or not before or shapes.get(node.input[1]) != before:
            return None
        found.tie(first, second)
        return first
    if node.op_type == "Slice" and len(node.input) > 3:
        axes = _constant(node.input[3], constants)
        return (
            first if axes is not None and not {0, 1} & set((axes % len(before)).tolist() if before else [0]) else None
        )
    if node.op_type == "Pad" and facts.get("mode", b"constant") == b"constant" and len(node.input) < 4:
        return _padded(node, first, found, constants)
    return None


def _padded(
    node: onnx.NodeProto, numbers: Ids, found: Channels, constants: Mapping[str, onnx.TensorProto]
) -> Ids | None:
    pads = _constant(node.input[1], constants)
    value = _constant(node.input[2], constants) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if pads is None or value is None or value.any() or pads.min() < 0 or len(pads) < 4:
        return None
    before, after = int(pads[1]), int(pads[len(pads) // 2 + 1])
    return np.concatenate([found.fresh(before), numbers, found.fresh(after)])  # zeros take any factor


def _constant(name: str, constants: Mapping[str, onnx.TensorProto]) -> NDArray[np.float64] | None:
    return numpy_helper.to_array(constants[name]).reshape(-1) if name in constants else None


def choose_factors(
    model: onnx.ModelProto, channels: Channels, peaks: Mapping[str, Floats], rounded: Iterable[str]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return by layer what to divide its outputs, and what its inputs are divided by, where that is not one.

    peaks: the largest magnitude of each channel; rounded: the tensors with a grid.
    """
    logs, counts = np.zeros(len(channels.parents)), np.zeros(len(channels.parents))
    for name in rounded:
        if name in channels.numbers and peaks[name].any():
            live = peaks[name] > 0
            roots = channels.roots(name)[live]
            np.add.at(logs, roots, np.log(peaks[name][live] / np.median(peaks[name][live])))
            np.add.at(counts, roots, 1)
    above = logs / np.maximum(counts, 1)
    factors = np.exp(np.maximum(STRENGTH * above, above - np.log(OUTLIER)))
    factors = np.maximum(factors, 1 / LARGEST_FACTOR)
    factors[[channels.root(number) for number in channels.frozen]] = 1.0
    outputs: dict[str, Floats] = {}
    inputs: dict[str, Floats] = {}
    for layer in weight_layers(model):
        for found, tensor in ((outputs, layer.output), (inputs, layer.input)):
            factor = factors[channels.roots(tensor)] if tensor in channels.numbers else np.ones(1)
            if (factor != 1).any():
                found[layer.name] = factor.astype(np.float32)
    return outputs, inputs


def equalize(model: onnx.ModelProto, outputs: Mapping[str, Floats], inputs: Mapping[str, Floats]) -> None:
    """Divide the outputs of layers, and multiply what reads them, in place."""
    for layer in weight_layers(model):
        rescale(model, layer, outputs.get(layer.name), inputs.get(layer.name))


def rescale(model: onnx.ModelProto, layer: WeightLayer, out: NDArray[Any] | None, into: NDArray[Any] | None) -> None:
    """Divide a layer's outputs, and multiply its inputs, by one factor a channel, in place."""
    held = initializers(model)
    if out is not None and (out != 1).any():
        stored = numpy_helper.to_array(held[layer.weight])
        shape = [1] * stored.ndim
        shape[channel_axis(layer)] = -1
        write_initializer(model, layer.weight, (stored / out.reshape(shape)).astype(np.float32))
        if layer.bias is not None:
            write_initializer(model, layer.bias, (numpy_helper.to_array(held[layer.bias]) / out).astype(np.float32))
    if into is not None and (into != 1).any():
        stored = numpy_helper.to_array(held[layer.weight])
        if layer.op == "Conv":
            split = stored.reshape(layer.group, -1, *stored.shape[1:])
            factor = into.reshape(layer.group, 1, -1, *([1] * (stored.ndim - 2)))
            scaled = (split * factor).reshape(stored.shape)
        else:
            scaled = stored * into.reshape((1, -1) if channel_axis(layer) == 0 else (-1, 1))
        write_initializer(model, layer.weight, scaled.astype(np.float32))

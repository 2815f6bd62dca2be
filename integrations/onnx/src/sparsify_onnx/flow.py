"""Follow values through a graph: from inputs and layers to outputs, but not through shapes, indices and conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto

from sparsify_onnx.fixed import FIXED
from sparsify_onnx.graph import initializers, model_inputs, producers, reads, weight_layers

FIRST = (0,)
# inputs that hold values, for operators whose others say where, how far or whether
VALUES: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Slice", "Split", "Pad", "Tile", "TopK", "Trilu"), FIRST),
    **dict.fromkeys(("Reshape", "Expand", "Squeeze", "Unsqueeze", "Resize", "Upsample", "Clip", "CumSum"), FIRST),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"), FIRST),
    **dict.fromkeys(("RoiAlign", "MaxRoiPool", "GridSample", "MaxUnpool"), FIRST),
    **dict.fromkeys(("ScatterND", "ScatterElements", "Scatter"), (0, 2)),
    "Where": (1, 2),
    **dict.fromkeys(("Shape", "Size", "Range", "ConstantOfShape", "EyeLike", "OneHot", "NonZero"), ()),
    **dict.fromkeys(("ArgMax", "ArgMin", "NonMaxSuppression", "Unique", "IsNaN", "IsInf"), ()),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not", "Xor"), ()),
}
INDEXED = ("TopK", "MaxPool")  # their second output is no value
INTEGERS = (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8)


@dataclass(frozen=True)
class Flow:
    """Hold a graph as values see it.

    sources, targets: the nodes before and after a node. learned: layers with learned weights, and look-ups of ids in
    a table; fixed: layers that are arithmetic.
    """

    nodes: Mapping[str, NodeProto]
    constants: Mapping[str, TensorProto]
    makers: Mapping[str, NodeProto]
    sources: Mapping[str, tuple[NodeProto, ...]]
    targets: Mapping[str, tuple[NodeProto, ...]]
    learned: frozenset[str]
    fixed: Mapping[str, str]
    inputs: frozenset[str]  # float inputs of the model
    fed: frozenset[str]  # tensors that a learned layer comes before
    led: frozenset[str]  # nodes that a learned layer comes after

    def spread(
        self, start: Iterable[NodeProto], step: Callable[[NodeProto], Iterable[NodeProto]]
    ) -> dict[str, NodeProto]:
        """Collect nodes reached from `start` by steps, `start` included."""
        found = {node.name: node for node in start}
        due = list(found.values())
        while due:
            for node in step(due.pop()):
                if node.name not in found:
                    found[node.name] = node
                    due.append(node)
        return found

    def computed(self, node: NodeProto) -> list[str]:
        """Name the values a node reads that are no constants."""
        return [name for name in values(node) if name not in self.constants]


def values(node: NodeProto) -> list[str]:
    """Name the tensors whose values a node passes on or computes with, in order."""
    if node.op_type == "Cast" and _to(node) in INTEGERS:
        return []
    places = VALUES.get(node.op_type)
    if places is None:
        inner = sorted(reads(node).difference(node.input))  # what subgraphs take from outside
        return [*(name for name in node.input if name), *inner]
    return [node.input[place] for place in places if place < len(node.input) and node.input[place]]


def view(model: onnx.ModelProto) -> Flow:
    """Follow the values of a whole model; node names must be unique."""
    constants, makers = initializers(model), producers(model)
    layers = {layer.name: layer for layer in weight_layers(model)}
    fixed = {name: layer.reason for name, layer in layers.items() if layer.reason in FIXED}
    learned = frozenset(layers.keys() - fixed.keys()) | _look_ups(model, constants)
    nodes = {node.name: node for node in model.graph.node}
    given = {
        name: [makers[source] for source in values(node) if _carries(makers, source)] for name, node in nodes.items()
    }
    taken: dict[str, list[NodeProto]] = {name: [] for name in nodes}
    fed: set[str] = set()
    led: set[str] = set()
    for node in model.graph.node:
        for source in given[node.name]:
            taken[source.name].append(node)
        if node.name in learned or not fed.isdisjoint(values(node)):
            fed.update(node.output[:1] if node.op_type in INDEXED else node.output)
    for node in reversed(model.graph.node):
        if any(target.name in learned or target.name in led for target in taken[node.name]):
            led.add(node.name)
    return Flow(
        nodes=nodes,
        constants=constants,
        makers=makers,
        sources={name: tuple(found) for name, found in given.items()},
        targets={name: tuple(found) for name, found in taken.items()},
        learned=learned,
        fixed=fixed,
        inputs=frozenset(value.name for value in model_inputs(model) if _is_float(value)),
        fed=frozenset(fed),
        led=frozenset(led),
    )


def _look_ups(model: onnx.ModelProto, constants: Mapping[str, TensorProto]) -> frozenset[str]:
    """Name the nodes that look something up in a constant table by numbers that the model is given."""
    given = {value.name for value in model_inputs(model)}
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in ("Shape", "Size") and not given.isdisjoint(reads(node)):
            given.update(node.output)
            if node.op_type == "Gather" and node.input[0] in constants:
                found.add(node.name)
    return frozenset(found)


def _carries(makers: Mapping[str, NodeProto], name: str) -> bool:
    maker = makers.get(name)
    return maker is not None and not (maker.op_type in INDEXED and name != maker.output[0])


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type not in INTEGERS


def _to(node: NodeProto) -> int:
    return next((item.i for item in node.attribute if item.name == "to"), 0)

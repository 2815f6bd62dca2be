"""Decide what runs in INT8: which nodes, which tensors are rounded, and which of them share one grid."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from sparsify_onnx.exclusions import Exclusions, Shapes, find_exclusions
from sparsify_onnx.graph import WEIGHTED, WeightLayer, attributes, initializers, producers, reads, weight_layers
from sparsify_onnx.weight_only import WEIGHT_ONLY

# these move or select values, so their output keeps their input's grid
MOVING = (
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "AveragePool",
    "Resize",
)
JOINING = ("Add", "Mul", "Concat")
MIXING = ("GlobalAveragePool", "LeakyRelu", "Sigmoid")
CLIPPING = ("Relu", "Clip")
AVERAGED = 16  # a mean of more values is much narrower than they are: it would waste the bits of their grid
EVERYTHING = (-np.inf, np.inf)


@dataclass(frozen=True)
class Placement:
    """Say what is written in INT8.

    nodes: every node that ONNX Runtime's writer is told to quantize. tensors: activations with a grid of their own.
    same: activations that take the grid of another, by name. absorbed: outputs of layers that a Relu or Clip follows,
    which the rounding replaces. forced: those of `tensors` that the writer must be told of. exact: outputs of INT8
    layers that are not rounded. reasons: `int8`, or why not, for each weighted node; excluded: the other nodes that
    must stay float, and why.
    """

    layers: tuple[WeightLayer, ...]
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    same: Mapping[str, str]
    absorbed: tuple[str, ...]
    forced: tuple[str, ...]
    exact: tuple[str, ...]
    reasons: Mapping[str, str]
    excluded: Mapping[str, str]

    def grid_of(self, tensor: str) -> str:
        """Name the tensor whose grid a quantized activation has."""
        while tensor in self.same:
            tensor = self.same[tensor]
        return tensor


@dataclass(frozen=True)
class _Graph:
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, onnx.TensorProto]
    makers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[str]]  # node names; a graph output counts as a reader named ""
    captured: frozenset[str]  # tensors that subgraphs read; ONNX Runtime's writer does not see that they do
    excluded: Exclusions

    def gives(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """Name the outputs of an INT8 layer that are rounded."""
        rounds = node.op_type == "Conv" and node.name not in self.excluded.outputs
        return tuple(node.output) if rounds else ()

    def only_reader(self, tensor: str) -> str | None:
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 else None


def place(model: onnx.ModelProto, ignored: Collection[str] = (), shapes: Shapes | None = None) -> Placement:
    """Quantize every layer ONNX Runtime has an INT8 kernel for, and what lies between two of them.

    Left out is what the graph's structure says would break; `shapes`, of one sample, tell what that costs.
    """
    graph = _view(model, find_exclusions(model, shapes or {}))
    layers = {layer.name: layer for layer in weight_layers(model)}
    reasons = {n.name: _why_float(n, layers.get(n.name), graph, ignored) for n in graph.nodes if n.op_type in WEIGHTED}
    chosen = {name for name, reason in reasons.items() if not reason}
    chosen |= _between(graph, chosen, ignored)
    absorbed = {node.input[0] for node in graph.nodes if node.name in chosen and _absorbs(node, graph)}
    same = _moved(graph, chosen)
    same |= _joined(graph, chosen, same)
    names = [name for node in graph.nodes if node.name in chosen for name in _rounded(node, graph)]
    rounded = [name for name in dict.fromkeys(names) if name not in absorbed]
    forced = [name for name in _clipped(graph, chosen) if name not in rounded]
    rounded += forced
    return Placement(
        layers=tuple(layer for name, layer in layers.items() if name in chosen),
        nodes=tuple(node.name for node in graph.nodes if node.name in chosen),
        tensors=tuple(name for name in rounded if name not in same),
        same={name: same[name] for name in rounded if name in same},
        absorbed=tuple(sorted(absorbed)),
        forced=tuple(forced),
        exact=tuple(node.output[0] for node in graph.nodes if node.name in chosen & graph.excluded.outputs.keys()),
        reasons={name: reason or "int8" for name, reason in reasons.items()},
        excluded={name: reason for name, reason in graph.excluded.nodes.items() if name not in reasons},
    )


def _view(model: onnx.ModelProto, excluded: Exclusions) -> _Graph:
    readers: dict[str, list[str]] = {value.name: [""] for value in model.graph.output}
    for node in model.graph.node:
        for name in reads(node):
            readers.setdefault(name, []).append(node.name)
    captured = frozenset(name for node in model.graph.node for name in reads(node).difference(node.input))
    return _Graph(tuple(model.graph.node), initializers(model), producers(model), readers, captured, excluded)


def _why_float(node: onnx.NodeProto, layer: WeightLayer | None, graph: _Graph, ignored: Collection[str]) -> str:
    facts = attributes(node)
    if node.name in ignored:
        return "ignored"
    if layer is None:
        return "no constant weight"
    if node.name in graph.excluded.nodes:
        return graph.excluded.nodes[node.name]
    if layer.op == "ConvTranspose":
        return WEIGHT_ONLY
    if layer.input in graph.constants:
        return "its input is constant"
    if layer.op == "MatMul" and (layer.weight_input == 0 or len(layer.shape) > 2):
        return "weight on the left" if layer.weight_input == 0 else "batched weight"
    if layer.op == "Gemm" and (facts.get("alpha", 1.0), facts.get("beta", 1.0)) != (1.0, 1.0):
        return "Gemm with factors"
    if len(node.input) > 2 and node.input[2] and not _is_bias(node.input[2], layer, graph):
        return "bias is not one constant per output"
    return ""


def _is_bias(name: str, layer: WeightLayer, graph: _Graph) -> bool:
    tensor = graph.constants.get(name)
    outputs = layer.shape[0] if layer.op == "Conv" or layer.attributes.get("transB", 0) else layer.shape[1]
    return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and list(tensor.dims) == [outputs]


def _between(graph: _Graph, layers: Collection[str], ignored: Collection[str]) -> set[str]:
    """Find the nodes that keep a chain of integers unbroken: fed by INT8 nodes, and feeding an INT8 layer.

    What follows the last layer stays float, for accuracy: it is short. So do outputs of Gemm and MatMul, which ONNX
    Runtime's kernels give as floats at no cost.
    """
    integer: set[str] = set()
    candidates: set[str] = set()
    for node in graph.nodes:
        if node.name in layers:
            integer.update(graph.gives(node))
        elif node.name not in ignored and node.name not in graph.excluded.nodes and _follows(node, integer, graph):
            candidates.add(node.name)
            integer.update(node.output)
    wanted = {layer.input[0] for layer in graph.nodes if layer.name in layers}
    kept: set[str] = set()
    for node in reversed(graph.nodes):
        ends_layer = _absorbs(node, graph) and graph.makers[node.input[0]].name in layers
        if node.name in candidates and (ends_layer or not wanted.isdisjoint(node.output)):
            kept.add(node.name)
            wanted.update(node.input)
    return kept


def _follows(node: onnx.NodeProto, integer: Collection[str], graph: _Graph) -> bool:
    """Say whether a node could take and give integers where `integer` are."""
    if node.op_type in JOINING:
        moving = [name for name in node.input if name not in graph.constants]
        return any(name in integer for name in moving) and _constants_are_floats(node, graph)
    if not node.input or node.input[0] not in integer or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "MaxPool" and len(node.output) > 1:
        return False  # its indices are no activation
    if node.op_type == "Relu":
        return _clips_here(node, graph)
    if node.op_type == "Clip":
        low, high = _clip_bounds(node, graph)
        return low <= 0 <= high and _clips_here(node, graph)
    if node.op_type == "AveragePool":
        return int(np.prod(attributes(node)["kernel_shape"])) <= AVERAGED
    if node.op_type == "Resize":
        return bool(attributes(node).get("mode", b"nearest") == b"nearest")
    return node.op_type in MOVING or node.op_type in MIXING


def _constants_are_floats(node: onnx.NodeProto, graph: _Graph) -> bool:
    held = [graph.constants[name] for name in node.input if name in graph.constants]
    return all(tensor.data_type == onnx.TensorProto.FLOAT for tensor in held)


def _clips_here(node: onnx.NodeProto, graph: _Graph) -> bool:
    """Say whether rounding the output clips as the node does: its maker must not pass its own grid on."""
    maker = graph.makers.get(node.input[0])
    return maker is not None and maker.op_type not in MOVING and node.input[0] not in graph.captured


def _absorbs(node: onnx.NodeProto, graph: _Graph) -> bool:
    return node.op_type in CLIPPING and graph.only_reader(node.input[0]) == node.name


def _clip_bounds(node: onnx.NodeProto, graph: _Graph) -> tuple[float, float]:
    """Read a Clip's bounds; one that is computed makes the range empty."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    found = list(EVERYTHING)
    for place, name in enumerate(node.input[1:3]):
        if name and name not in graph.constants:
            return np.inf, -np.inf
        if name:
            found[place] = float(numpy_helper.to_array(graph.constants[name]).reshape(-1)[0])
    return found[0], found[1]


def _moved(graph: _Graph, chosen: Collection[str]) -> dict[str, str]:
    """Give the outputs of moving nodes the grid of their input."""
    return {
        name: node.input[0]
        for node in graph.nodes
        if node.name in chosen and node.op_type in MOVING
        for name in node.output
    }


def _joined(graph: _Graph, chosen: Collection[str], moved: Mapping[str, str]) -> dict[str, str]:
    """Give what only a Concat reads the Concat's grid: it is rounded to that anyway, and copying needs no arithmetic.

    Where a Relu or Clip is absorbed, the grid clips in its place, so all inputs must be clipped alike.
    """
    shared: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type != "Concat" or node.name not in chosen:
            continue
        sources = [_source(name, node.name, graph, moved) for name in node.input]
        bounds = {_bounds(name, graph, chosen) for name in sources if name} if all(sources) else set()
        if len(bounds) == 1 and len(set(sources)) == len(sources):
            shared |= {name: node.output[0] for name in sources if name}
    return shared


def _clipped(graph: _Graph, chosen: Collection[str]) -> list[str]:
    """List outputs of a Relu or Clip after Gemm or MatMul: unrounded, ONNX Runtime runs both in float."""
    return [
        node.output[0]
        for node in graph.nodes
        if node.op_type in CLIPPING
        and (maker := graph.makers.get(node.input[0])) is not None
        and maker.op_type in ("Gemm", "MatMul")
        and maker.name in chosen
        and _absorbs(node, graph)
    ]


def _source(name: str, reader: str, graph: _Graph, moved: Mapping[str, str]) -> str | None:
    """Follow a tensor that one node alone reads back to where its grid comes from."""
    while graph.only_reader(name) == reader:
        if name not in moved:
            return None if name in graph.constants else name
        name, reader = moved[name], graph.makers[name].name
    return None


def _bounds(name: str, graph: _Graph, chosen: Collection[str]) -> tuple[float, float]:
    maker = graph.makers.get(name)
    if maker is None or maker.name not in chosen or not _absorbs(maker, graph):
        return EVERYTHING
    return _clip_bounds(maker, graph)


def _rounded(node: onnx.NodeProto, graph: _Graph) -> list[str]:
    """List the activations that the writer rounds at a node."""
    if node.op_type in WEIGHTED:
        return [node.input[0], *graph.gives(node)]
    if node.op_type in JOINING:
        return [*(name for name in node.input if name not in graph.constants), *node.output]
    return [node.input[0], *node.output]

"""Find the tensors that normalisations give to INT8 layers, and what scales them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto, numpy_helper

from sparsify_onnx.columns import inputs
from sparsify_onnx.flow import Flow, view
from sparsify_onnx.graph import WeightLayer, attributes, reads
from sparsify_onnx.normalisations import norm_nodes

# where normalising operators hold what scales and shifts their first output; inputs that are absent do not
AFFINE: Mapping[str, tuple[int, ...]] = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
Place = tuple[NodeProto, int]  # a node, and one of its inputs


@dataclass(frozen=True)
class Site:
    """Say where factors go: a tensor that comes out of a normalisation, and the INT8 layers that read it.

    folds: the constants that scale the tensor and nothing else, or empty where there are none.
    """

    tensor: str
    layers: tuple[WeightLayer, ...]
    folds: tuple[Place, ...]


def find_sites(model: onnx.ModelProto, layers: Iterable[WeightLayer]) -> list[Site]:
    """Find the tensors whose last axis is a normalisation's, and which of the layers multiply it by weights."""
    by_tensor: dict[str, list[WeightLayer]] = defaultdict(list)
    for layer in layers:
        if layer.op in ("MatMul", "Gemm") and not layer.attributes.get("transA", 0):
            by_tensor[layer.input].append(layer)
    flow, readers = view(model), _readers(model)
    norms = norm_nodes(flow)
    sites = []
    for tensor, found in by_tensor.items():
        path = _back_to_norm(flow, tensor, inputs(found[0]))
        maker = flow.makers.get(path[-1])
        if maker is None or maker.name not in norms:
            continue
        alone = readers[tensor] == {layer.name for layer in found} and all(len(readers[name]) == 1 for name in path[1:])
        sites.append(Site(tensor, tuple(found), _scaling(flow, maker, inputs(found[0]), readers) if alone else ()))
    return sites


def _readers(model: onnx.ModelProto) -> Mapping[str, set[str]]:
    """Map tensors to the names of the nodes that read them; a graph output counts as a reader named ""."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.node:
        for name in reads(node):
            found[name].add(node.name)
    for value in model.graph.output:
        found[value.name].add("")
    return found


def _back_to_norm(flow: Flow, tensor: str, width: int) -> list[str]:
    """List the tensors from one back to where its last axis comes from, through nodes that only move other axes."""
    path = [tensor]
    while (maker := flow.makers.get(path[-1])) is not None and _keeps_last(flow, maker, width):
        path.append(maker.input[0])
    return path


def _keeps_last(flow: Flow, node: NodeProto, width: int) -> bool:
    if node.op_type == "Transpose":
        order = attributes(node).get("perm", ())
        return bool(order) and order[-1] == len(order) - 1
    if node.op_type != "Reshape" or node.input[1] not in flow.constants:
        return False
    target = numpy_helper.to_array(flow.constants[node.input[1]])
    return bool(target.size and target[-1] == width)


def _scaling(flow: Flow, maker: NodeProto, width: int, readers: Mapping[str, set[str]]) -> tuple[Place, ...]:
    """Find the constants that scale all of a normalisation's output; none where one of them is computed or missing."""
    if maker.op_type in AFFINE:
        held = [(maker, place) for place in AFFINE[maker.op_type] if place < len(maker.input) and maker.input[place]]
        dims = [
            list(flow.constants[node.input[place]].dims) for node, place in held if node.input[place] in flow.constants
        ]
        return tuple(held) if len(dims) == len(held) and all(size[-1:] == [width] for size in dims) else ()
    shift = _constant_operand(flow, maker, "Add")
    scaled = next(name for place, name in enumerate(maker.input) if place != shift)
    scaler = flow.makers.get(scaled) if shift is not None and len(readers[scaled]) == 1 else maker
    scale = _constant_operand(flow, scaler, "Mul") if scaler else None
    if scaler is None or scale is None:
        return ()
    return ((scaler, scale),) if shift is None else ((scaler, scale), (maker, shift))


def _constant_operand(flow: Flow, node: NodeProto, op: str) -> int | None:
    return next((place for place, name in enumerate(node.input) if node.op_type == op and name in flow.constants), None)


def group_sites(model: onnx.ModelProto, sites: Sequence[Site]) -> list[list[Site]]:
    """Join sites whose layers share weights; left out are those whose weights other nodes read too."""
    readers, groups = _readers(model), list[list[Site]]()
    for site in sites:
        joined = [group for group in groups if _weights(group) & _weights([site])]
        groups = [group for group in groups if group not in joined] + [
            [*(one for group in joined for one in group), site]
        ]
    return [group for group in groups if all(readers[name] <= _names(group) for name in _weights(group))]


def _weights(group: Iterable[Site]) -> set[str]:
    return {layer.weight for site in group for layer in site.layers}


def _names(group: Iterable[Site]) -> set[str]:
    return {layer.name for site in group for layer in site.layers}

"""Find from the structure of a graph, never from names, what would break if it were rounded to 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from sparsify_onnx.attention import SCORES, mask_nodes, position_nodes, score_nodes
from sparsify_onnx.flow import Flow, view
from sparsify_onnx.graph import weight_layers
from sparsify_onnx.heads import HEAD, head_nodes
from sparsify_onnx.macs import count_macs
from sparsify_onnx.normalisations import norm_nodes

AFFORDABLE = 0.1  # of all multiplications, in layers that give floats: ONNX Runtime computes these in float
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Exclusions:
    """Say what must not be rounded: nodes, with the reason, and the outputs of these layers."""

    nodes: Mapping[str, str]
    outputs: Mapping[str, str]


def structural_exclusions(model: onnx.ModelProto, shapes: Shapes) -> dict[str, str]:
    """Map the nodes that must stay float to the reason, layers that are arithmetic included."""
    return dict(find_exclusions(model, shapes).nodes)


def find_exclusions(model: onnx.ModelProto, shapes: Shapes) -> Exclusions:
    """Find nodes to leave in float, and layers that must give floats; names of nodes must be unique."""
    flow = view(model)
    found = {**position_nodes(flow), **mask_nodes(flow), **norm_nodes(flow), **score_nodes(flow), **head_nodes(flow)}
    nodes = {name: found[name] for name in flow.nodes if name in found} | dict(flow.fixed)
    return Exclusions(nodes, _exact_outputs(model, flow, nodes, shapes))


def _exact_outputs(model: onnx.ModelProto, flow: Flow, nodes: Mapping[str, str], shapes: Shapes) -> dict[str, str]:
    """Choose the Convs that give floats to heads and Softmax alone, while they are a small part of the work."""
    layers = weight_layers(model)
    costs = {layer.name: count_macs(layer, shapes) for layer in layers}
    room = AFFORDABLE * sum(costs.values())
    chosen: dict[str, str] = {}
    for layer in sorted(layers, key=lambda layer: costs[layer.name]):
        reasons = {nodes.get(node.name, "") for node in flow.targets[layer.name]}
        if layer.op == "Conv" and layer.name in flow.learned and reasons and reasons <= {HEAD, SCORES}:
            room -= costs[layer.name]
            chosen |= {layer.name: min(reasons)} if room >= 0 else {}
    return chosen

"""Find detection heads: what turns the last layers' outputs into boxes and scores.

One scale cannot span boxes of 0 to 640 pixels and scores of 0 to 1, so none of it is rounded.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import NodeProto

from sparsify_onnx.fixed import PASSING
from sparsify_onnx.flow import Flow

HEAD = "detection head: boxes and scores"
SUPPRESSION = "NonMaxSuppression"
JOINING = ("Concat", "ScatterND", "ScatterElements")
FOLDING = ("Reshape", "Flatten")  # what lays a map's places out in one axis, before maps of several sizes are joined
ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "PRelu", "Elu", "Dropout", "Pad", "Resize", "MaxPool", "AveragePool")
REDUCING = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax")


def head_nodes(flow: Flow) -> dict[str, str]:
    """Collect the nodes of detection heads, from after the last learned layers to the outputs."""
    tail = {name: node for name, node in flow.nodes.items() if _is_tail(flow, node)}
    choosing = [node for node in flow.nodes.values() if SUPPRESSION in node.op_type or "NMS" in node.op_type]
    chosen = [flow.makers[name] for node in choosing for name in node.input if name in flow.makers]
    signs = [node for node in tail.values() if _joins_meanings(flow, node, tail) or _joins_scales(flow, node, tail)]
    signs += [node for node in chosen if node.name in tail]

    def beside(node: NodeProto) -> Iterable[NodeProto]:
        found = (*flow.sources[node.name], *flow.targets[node.name])
        return [other for other in found if other.name in tail]

    return dict.fromkeys([*flow.spread(signs, beside), *(node.name for node in choosing)], HEAD)


def _is_tail(flow: Flow, node: NodeProto) -> bool:
    behind = any(source.name in flow.learned or source.output[0] in flow.fed for source in flow.sources[node.name])
    return behind and node.name not in flow.learned and node.name not in flow.led


def _joins_meanings(flow: Flow, node: NodeProto, tail: dict[str, NodeProto]) -> bool:
    """Say whether a node joins values that were computed in different ways, as boxes and scores are."""
    if node.op_type not in JOINING:
        return False
    parts = [_arithmetic(flow, source, tail) for source in flow.sources[node.name]]
    return len(set(parts)) > 1


def _arithmetic(flow: Flow, node: NodeProto, tail: dict[str, NodeProto]) -> frozenset[str]:
    """Name the operators that computed a value after the last layers, those that only move or clip values left out."""
    found = flow.spread([node], lambda other: [item for item in flow.sources[other.name] if item.name in tail])
    kinds = {item.op_type for name, item in found.items() if name in tail}
    return frozenset(kinds - {*PASSING, *JOINING, *ACTIVATIONS})


def _joins_scales(flow: Flow, node: NodeProto, tail: dict[str, NodeProto]) -> bool:
    """Say whether a Concat joins the maps of several layers, laid out flat, into an output."""
    if node.op_type != "Concat" or len(flow.sources[node.name]) < 2:
        return False
    after = flow.spread([node], lambda other: flow.targets[other.name])
    if any(item.op_type in REDUCING for item in after.values()):
        return False
    return all(_laid_flat(flow, source, tail) for source in flow.sources[node.name])


def _laid_flat(flow: Flow, node: NodeProto, tail: dict[str, NodeProto]) -> bool:
    flat = False
    while node.name in tail and (node.op_type in PASSING or node.op_type == "Sigmoid"):
        flat |= node.op_type in FOLDING
        if not flow.sources[node.name]:
            return False
        node = flow.sources[node.name][0]
    return flat and node.name in flow.learned

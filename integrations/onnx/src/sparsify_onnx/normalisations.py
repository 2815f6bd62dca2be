"""Find normalisations, also those written out: their statistics decide every value, and are small in number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from onnx import NodeProto, numpy_helper

from sparsify_onnx.fixed import PASSING
from sparsify_onnx.flow import Flow, values

NORMALISING = "normalisation and its statistics"
OPERATORS = (
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization"),
    *("SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "GroupNorm"),
    *("MeanVarianceNormalization", "LRN"),
)
MEANS = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "GlobalAveragePool")
LENGTHS = ("ReduceL2",)  # these are roots already
KEEPING = ("Add", "Mul", "Div", "Clip", "Max", "Expand", *PASSING)  # between a statistic and where it is applied
INVERTING = ("Reciprocal", "Pow")
HALVES = (0.5, -0.5)


def norm_nodes(flow: Flow) -> dict[str, str]:
    """Collect normalising operators, and those written out: mean, difference, square, mean, root, quotient."""
    found = {node.name for node in flow.nodes.values() if node.op_type in OPERATORS}
    for node in flow.nodes.values():
        if _is_root(flow, node):
            found |= _around(flow, node)
    return dict.fromkeys(found, NORMALISING)


def _is_root(flow: Flow, node: NodeProto) -> bool:
    if node.op_type == "Pow" and node.input[1] in flow.constants:
        return bool(np.isin(numpy_helper.to_array(flow.constants[node.input[1]]), HALVES).all())
    return node.op_type == "Sqrt" or node.op_type in LENGTHS


def _around(flow: Flow, root: NodeProto) -> set[str]:
    """Collect the nodes from the mean to the quotient around a root, or none where the root is another thing's."""
    behind = [root] if root.op_type in LENGTHS else list(_back_to_mean(flow, root))
    if not behind or behind[-1].op_type not in MEANS:
        return set()
    ahead = list(_on_to_quotient(flow, root))
    if not ahead:
        return set()
    return {node.name for node in (root, *behind, *ahead, *_differences(flow, behind[-1]))}


def _back_to_mean(flow: Flow, node: NodeProto) -> Iterator[NodeProto]:
    while len(flow.sources[node.name]) == 1:
        node = flow.sources[node.name][0]
        if node.op_type in MEANS:
            yield node
            return
        if node.op_type not in KEEPING:
            return
        yield node


def _on_to_quotient(flow: Flow, node: NodeProto) -> Iterator[NodeProto]:
    """Yield the nodes after a root up to where activations are divided by it, or multiplied by its inverse.

    Scales and shifts that follow are part of it.
    """
    due = [node]
    while due:
        for target in flow.targets[due.pop().name]:
            joins = len([name for name in values(target) if name in flow.makers or name in flow.inputs]) > 1
            if target.op_type in ("Div", "Mul") and joins:
                yield target
                yield from _scales(flow, target)
            elif target.op_type in KEEPING or target.op_type in INVERTING:
                yield target
                due.append(target)


def _scales(flow: Flow, node: NodeProto) -> Iterator[NodeProto]:
    while len(flow.targets[node.name]) == 1:
        node = flow.targets[node.name][0]
        if node.op_type not in ("Mul", "Add") or len(flow.computed(node)) != 1:
            return
        yield node


def _differences(flow: Flow, mean: NodeProto) -> Iterable[NodeProto]:
    """Yield what a mean of squares is the mean of: squares, differences, and the mean subtracted."""
    found: dict[str, NodeProto] = {}
    due = [mean]
    while due:
        for source in flow.sources[due.pop().name]:
            wanted = source.op_type in ("Pow", "Abs", "Sub", *MEANS) or _squares(source)
            if wanted and source.name not in found:
                found[source.name] = source
                due.extend([] if source.op_type in MEANS else [source])
    return found.values()


def _squares(node: NodeProto) -> bool:
    return node.op_type == "Mul" and node.input[0] == node.input[1]

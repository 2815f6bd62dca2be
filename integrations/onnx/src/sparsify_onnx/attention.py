"""Find what attention needs exact: scores on their way into Softmax, masks, and positions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from sparsify_onnx.fixed import PASSING
from sparsify_onnx.flow import Flow, values
from sparsify_onnx.graph import WEIGHTED

SCORES = "softmax and its inputs"
MASK = "mask: values far beyond the others"
POSITION = "position or mask: no layer before it"
SOFTMAXES = ("Softmax", "LogSoftmax")
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Where", "Clip", "Max", "Min", "Concat")
MASKING = ("Add", "Sub", "Mul", "Div", "Where", "Pad", "ScatterND")
COMBINING = ("Add", "Sub", "Mul", "Div", "Where", "Concat")
FAR = 1e4  # masks written as -10000, -1e9, the least float, or minus infinity


def score_nodes(flow: Flow) -> dict[str, str]:
    """Collect each Softmax, what lies between it and the layer or product of activations before it, and its use."""
    ends = [node for node in flow.nodes.values() if node.op_type in SOFTMAXES or _divides_by_sum(flow, node)]

    def back(node: NodeProto) -> Iterable[NodeProto]:
        if node.op_type in ELEMENTWISE and len([name for name in values(node) if name in flow.fed]) > 1:
            return ()  # two activations meet: the scores begin here
        return [source for source in flow.sources[node.name] if _passes(source) and source.output[0] in flow.fed]

    def onward(node: NodeProto) -> Iterable[NodeProto]:
        # shares of one, most of them far below the largest, do not fit a grid; a factor of activations ends them
        return [target for target in flow.targets[node.name] if _passes(target)] if node.op_type != "Mul" else ()

    return dict.fromkeys([*flow.spread(ends, back), *flow.spread(ends, onward)], SCORES)


def _passes(node: NodeProto) -> bool:
    return node.op_type in ELEMENTWISE or (node.op_type in PASSING and node.op_type not in WEIGHTED)


def _divides_by_sum(flow: Flow, node: NodeProto) -> bool:
    """Say whether a Div ends a Softmax that is written out: Exp ÷ ReduceSum(Exp)."""
    if node.op_type != "Div":
        return False
    above, below = (flow.makers.get(name) for name in node.input)
    if above is None or below is None:
        return False
    return above.op_type == "Exp" and below.op_type == "ReduceSum" and below.input[0] == above.output[0]


def mask_nodes(flow: Flow) -> dict[str, str]:
    """Collect nodes that bring in constants far beyond any activation, and what they are added to."""
    starts = [node for node in flow.nodes.values() if node.op_type in MASKING and _is_far(flow, node)]

    def onward(node: NodeProto) -> Iterable[NodeProto]:
        return [target for target in flow.targets[node.name] if _passes(target)]

    return dict.fromkeys(flow.spread(starts, onward), MASK)


def _is_far(flow: Flow, node: NodeProto) -> bool:
    held = [flow.constants[name] for name in values(node) if name in flow.constants]
    arrays = [numpy_helper.to_array(tensor) for tensor in held if tensor.data_type == TensorProto.FLOAT]
    return any(array.size and not np.abs(array).max() < FAR for array in arrays)


def position_nodes(flow: Flow) -> dict[str, str]:
    """Collect what is joined to activations without a layer before it, and the nodes that join it.

    A float input of the model is data, as is what ids look up, or a constant that has one value a channel.
    """
    found: dict[str, NodeProto] = {}
    for node in flow.nodes.values():
        if node.op_type not in COMBINING or not any(name in flow.fed for name in values(node)):
            continue
        free = [flow.makers[name] for name in flow.computed(node) if name in flow.makers and name not in flow.fed]
        chain = flow.spread(free, lambda item: flow.sources[item.name])
        if free and not any(_reads_data(flow, item) for item in chain.values()):
            found |= {node.name: node, **chain}
        elif node.op_type in ("Add", "Concat") and any(_varies(flow, name) for name in values(node)):
            found[node.name] = node
    return dict.fromkeys(found, POSITION)


def _reads_data(flow: Flow, node: NodeProto) -> bool:
    return any(name in flow.inputs for name in values(node))


def _varies(flow: Flow, name: str) -> bool:
    """Say whether a constant has a value for each place and channel."""
    tensor = flow.constants.get(name)
    return tensor is not None and sum(size > 1 for size in tensor.dims) > 1

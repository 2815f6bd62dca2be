"""Turn products with a constant on the left around: integer kernels take one scale an output on the right alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from sparsify_onnx.graph import WeightLayer, drop_unread, initializers, weight_layers

BEFORE, AFTER = "_turned_input", "_turned_output"


def turn_products(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Replace y = W x by yᵀ = xᵀ Wᵀ between transpositions, in place, where x's axes are known; count the layers.

    A layer keeps its name, and y its own: the Transpose after the layer makes it.
    """
    left = {layer.name: layer for layer in weight_layers(model) if layer.op == "MatMul" and layer.weight_input == 0}
    turned = {name: layer for name, layer in left.items() if _can_turn(layer, shapes)}
    if not turned:
        return 0
    nodes = [
        item
        for node in model.graph.node
        for item in (_turned(turned[node.name], len(shapes[node.input[1]])) if node.name in turned else [node])
    ]
    held = initializers(model)
    fresh = {layer.weight: numpy_helper.to_array(held[layer.weight]).T for layer in turned.values()}
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unread(model, fresh)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), f"{name}{BEFORE}") for name, array in fresh.items()
    )
    return len(turned)


def _can_turn(layer: WeightLayer, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return len(layer.shape) == 2 and len(shapes.get(layer.input, ())) >= 2


def _turned(layer: WeightLayer, axes: int) -> list[NodeProto]:
    order = [*range(axes - 2), axes - 1, axes - 2]
    before, after = f"{layer.name}{BEFORE}", f"{layer.name}{AFTER}"
    return [
        helper.make_node("Transpose", [layer.input], [before], before, perm=order),
        helper.make_node("MatMul", [before, f"{layer.weight}{BEFORE}"], [after], layer.name),
        helper.make_node("Transpose", [after], [layer.output], after, perm=order),
    ]

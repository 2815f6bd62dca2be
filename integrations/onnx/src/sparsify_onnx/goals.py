"""Say what a layer's output should equal, so that it repairs what the layers before it could not.

Where a layer's output is only added to another branch, the sum is what later layers see: the layer then aims at the
dense model's sum less the compressed model's other branch, and so takes back that branch's error too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from sparsify_onnx.graph import WeightLayer, consumers, initializers
from sparsify_onnx.stream import upstream


@dataclass(frozen=True)
class Goal:
    """Aim at the dense model's tensor `sum`, less the compressed model's tensor `other`, less a constant."""

    sum: str
    other: str = ""
    constant: NDArray[np.float32] | None = None

    def wanted(self, dense: NDArray[np.float32], other: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Return what the layer's output should be."""
        found = dense if other is None else dense - other
        return found if self.constant is None else found - self.constant


def find_goal(model: onnx.ModelProto, layer: WeightLayer, open_layers: Collection[WeightLayer]) -> Goal:
    """Find the layer's goal; `open_layers` are those not solved yet, which the other branch must not depend on."""
    readers, constants = consumers(model), initializers(model)
    outputs = {value.name for value in model.graph.output}
    tensor, constant = layer.output, None
    if layer.op == "MatMul":
        node = _only_add(tensor, readers, outputs)
        bias = _other(node, tensor) if node else ""
        if node and bias in constants:
            tensor, constant = node.output[0], numpy_helper.to_array(constants[bias])
    node = _only_add(tensor, readers, outputs)
    other = _other(node, tensor) if node else ""
    if not node or not other or other in constants:
        return Goal(layer.output)
    waiting = {one.output for one in open_layers if one.name != layer.name}
    behind = {name for index in upstream(model, [other]) for name in model.graph.node[index].output}
    return Goal(layer.output) if waiting & behind else Goal(node.output[0], other, constant)


def _only_add(tensor: str, readers: dict[str, list[onnx.NodeProto]], outputs: Collection[str]) -> onnx.NodeProto | None:
    found = readers.get(tensor, [])
    return found[0] if len(found) == 1 and found[0].op_type == "Add" and tensor not in outputs else None


def _other(node: onnx.NodeProto, tensor: str) -> str:
    others = [name for name in node.input if name != tensor]
    return others[0] if len(others) == 1 else ""
